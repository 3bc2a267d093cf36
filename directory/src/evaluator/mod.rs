//! A holder of a share of the handles' key: it answers evaluations with the
//! share that the log puts in force, and takes its part in ceremonies.

mod files;
mod quota;
mod seal;

use crate::DirectoryError;
use crate::config::EvaluatorConfig;
use crate::keyfile::{self, Role};
use bytes::Bytes;
use chancery_directory_core::ceremony::conclusion;
use chancery_directory_core::ceremony::party;
use chancery_directory_core::ceremony::transcript::{Dealings, Outcome};
use chancery_directory_core::ceremony::{Ceremony, Joins};
use chancery_directory_core::governance;
use chancery_directory_core::handle::{self, Serving};
use chancery_directory_core::totals::{self, EvaluationTotals};
use chancery_directory_core::{Error, EvaluatorKey, FederationState, SigningKey};
use chancery_directory_log::{Follower, directory_call};
use chancery_kit::tls::{Credentials, connect_lazy};
use chancery_pki_core::Party;
use chancery_proto::directory::v1 as wire;
use chancery_types::{Clock, Entropy, NodeId, Reason, Refusal};
use files::{CeremonyFile, Files};
use prost::Message as _;
use quota::{Limits, Quota};
use seal::Seal;
use std::path::Path;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// How often an evaluator looks at the log by itself.
const FOLLOW: Duration = Duration::from_secs(10);
/// When a day's totals are final: calls counted before midnight have ended.
const DAY_SETTLES: Duration = Duration::from_mins(5);
/// How often a caller may make it look …
const ASK_AGAIN: Duration = Duration::from_secs(1);
/// … and while a share of its own waits to be put in force.
const ASK_SOON: Duration = Duration::from_millis(100);

/// The key that signs what an evaluator says in ceremonies, made first when
/// there is none; its public half goes into the ceremony's plan.
///
/// # Errors
/// The key file, see [`keyfile::load_or_create`].
pub fn key(folder: &Path, entropy: &dyn Entropy) -> Result<EvaluatorKey, DirectoryError> {
    signing_key(folder, entropy).map(|key| (&key).into())
}

fn signing_key(folder: &Path, entropy: &dyn Entropy) -> Result<SigningKey, DirectoryError> {
    keyfile::signing_key(&folder.join("evaluator.key"), Role::Evaluator, entropy)
}

/// An evaluator. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Evaluator(Arc<Inner>);

struct Inner {
    id: NodeId,
    key: SigningKey,
    files: Files,
    log: Follower,
    clock: Arc<dyn Clock>,
    entropy: Arc<dyn Entropy>,
    quota: Quota,
    /// At most one of each key epoch.
    serving: RwLock<Vec<Arc<Serving>>>,
    /// One step of one ceremony at a time.
    step: tokio::sync::Mutex<()>,
    asked: tokio::sync::Mutex<Option<Instant>>,
}

impl Evaluator {
    /// Opens its folder. What was begun is finished, and the share in force serves.
    pub(crate) async fn open(
        config: EvaluatorConfig,
        credentials: &Arc<Credentials>,
        entropy: Arc<dyn Entropy>,
    ) -> Result<Self, DirectoryError> {
        let (directory, _) = connect_lazy(&config.directory, Party::Directory, Arc::clone(credentials))?;
        let key = signing_key(&config.folder, &*entropy)?;
        let files = Files::new(&config.folder, Seal::open(&config.seal_key, &*entropy)?);
        for mut begun in files.ceremonies()? {
            if begun.in_force {
                files.put_in_force(&mut begun)?;
            }
        }
        let serving = files.shares()?.into_iter().map(Arc::new).collect();
        let quota = Quota::open(&config.folder).await?;
        Ok(Self(Arc::new(Inner {
            quota,
            clock: Arc::clone(credentials.clock()),
            id: config.id,
            key,
            files,
            log: Follower::new(config.trust, directory),
            entropy,
            serving: RwLock::new(serving),
            step: tokio::sync::Mutex::default(),
            asked: tokio::sync::Mutex::default(),
        })))
    }

    /// Follows the log until `shutdown`.
    pub(crate) async fn follow(self, shutdown: CancellationToken) {
        let mut ticks = tokio::time::interval(FOLLOW);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        while shutdown.run_until_cancelled(ticks.tick()).await.is_some() {
            let followed = async {
                self.look().await?;
                self.report().await
            };
            if let Err(refusal) = followed.await {
                tracing::warn!(reason = %refusal.reason, "evaluator.log.fail");
            }
        }
    }

    /// Has the directory log the totals of days that are over.
    async fn report(&self) -> Result<(), Refusal> {
        let today = totals::day_of(self.0.clock.now().before(DAY_SETTLES));
        while let Some((day, totals)) = self.0.quota.unlogged(today).await.map_err(failed)? {
            let totals = EvaluationTotals { evaluator: self.0.id.clone(), day, totals };
            let totals = Some(totals.sign(&self.0.key));
            let request = wire::SubmitEvaluationTotalsRequest { totals };
            match directory_call(self.0.log.directory().submit_evaluation_totals(request)).await {
                // What is logged stands; the days after it must not wait for ever.
                Err(refusal) if refusal.reason == Reason::RequestIdReused => {
                    tracing::error!(day, "evaluator.totals.differ_from_logged");
                }
                submitted => drop(submitted?),
            }
            self.0.quota.logged(day).await.map_err(failed)?;
        }
        Ok(())
    }

    /// What the log says, as last seen; looked at again for a caller that it
    /// does not name.
    pub(crate) async fn state(&self, caller: &NodeId) -> Arc<FederationState> {
        if self.0.log.state().member(caller).is_none() {
            self.look_for_caller().await;
        }
        self.0.log.state()
    }

    /// Answers an administration's node with the share in force, once it is
    /// counted. An epoch that it does not know makes it look at the log first.
    ///
    /// # Errors
    /// As [`handle::answer`]; WRONG_KEY_EPOCH without a share; QUOTA_EXCEEDED.
    pub(crate) async fn answer(
        &self,
        administration: &NodeId,
        request: wire::EvaluateRequest,
    ) -> Result<wire::EvaluateResponse, Refusal> {
        let named = (request.key_epoch, request.generation);
        let mut serving = self.serving(named);
        if serving.is_none() {
            self.look_for_caller().await;
            serving = self.serving(named);
        }
        let serving = serving.ok_or(Error::WrongKeyEpoch)?;
        let request = handle::check(request, &serving)?;
        let state = self.0.log.state();
        let limits = Limits { administration: state.entitlement(administration), all: state.ceiling() };
        let day = totals::day_of(self.0.clock.now());
        self.0.quota.take(administration, day, request.len(), limits).await?;
        let entropy = Arc::clone(&self.0.entropy);
        // A full batch takes some 100 ms: not on a thread that serves others.
        let working = tokio::task::spawn_blocking(move || handle::answer(&request, &serving, &*entropy));
        Ok(working.await.map_err(|_| Refusal::new(Reason::Internal, "the evaluation broke off"))??)
    }

    /// Round 1.
    ///
    /// # Errors
    /// Governance did not plan it, it does not follow what is in force, or this
    /// evaluator has no part in it.
    pub(crate) async fn join(&self, plan: wire::SignedStatement) -> Result<wire::JoinResponse, Refusal> {
        let verified = self.verify(&plan)?;
        let _step = self.0.step.lock().await;
        self.look().await?;
        let ceremony = Ceremony::new(&verified, &self.0.log.state())?;
        let party = ceremony.party(&self.0.id);
        if party.is_none() && ceremony.dealer(&self.0.id).is_none() {
            return Err(Error::Ceremony("this evaluator has no part in the ceremony").into());
        }
        let files = &self.0.files;
        let file = match files.ceremony(ceremony.id()).map_err(failed)? {
            Some(file) => file,
            None => {
                let follows = (ceremony.plan().key_epoch, ceremony.plan().generation);
                files
                    .begin(ceremony.id(), &plan.encode_to_vec(), follows, &*self.0.entropy)
                    .map_err(failed)?
            }
        };
        let secret = files.secret(&file).map_err(failed)?;
        let join = party.map(|party| party::join(&ceremony, party, &secret, &self.0.key)).transpose()?;
        Ok(wire::JoinResponse { join })
    }

    /// Round 2.
    ///
    /// # Errors
    /// It did not join, the joins do not hold, or it dealt upon others.
    pub(crate) async fn deal(
        &self,
        id: &[u8],
        joins: &[wire::SignedCeremonyMessage],
    ) -> Result<wire::SignedCeremonyMessage, Refusal> {
        let _step = self.0.step.lock().await;
        let (ceremony, mut file) = self.begun(id).await?;
        let joins = Joins::verify(&ceremony, joins)?;
        let digest = hex::encode(joins.digest());
        if let Some((upon, dealt)) = &file.dealt {
            if *upon != digest {
                let message = "this evaluator dealt upon other joins; plan another ceremony";
                return Err(Refusal::new(Reason::RequestIdReused, message));
            }
            return decode(dealt);
        }
        let dealer = ceremony.dealer(&self.0.id);
        let dealer = dealer.ok_or(Error::Ceremony("this evaluator does not deal in the ceremony"))?;
        let plan = ceremony.plan();
        let before = plan.generation.checked_sub(1).filter(|_| ceremony.deals_anew());
        let serving = before.and_then(|before| self.serving((plan.key_epoch, before)));
        let held = serving.as_ref().map(|serving| &serving.share);
        let dealing = party::deal(&ceremony, dealer, held, &joins, &self.0.key, &*self.0.entropy)?;
        file.dealt = Some((digest, hex::encode(dealing.encode_to_vec())));
        self.0.files.keep(&file).map_err(failed)?;
        Ok(dealing)
    }

    /// Round 3.
    ///
    /// # Errors
    /// It did not join, or joins or dealings do not hold.
    pub(crate) async fn judge(
        &self,
        id: &[u8],
        joins: &[wire::SignedCeremonyMessage],
        dealings: &[wire::SignedCeremonyMessage],
    ) -> Result<wire::SignedCeremonyMessage, Refusal> {
        let _step = self.0.step.lock().await;
        let (ceremony, file) = self.begun(id).await?;
        let joins = Joins::verify(&ceremony, joins)?;
        let dealings = Dealings::verify(&ceremony, &joins, dealings)?;
        let party = self.party(&ceremony)?;
        let secret = self.0.files.secret(&file).map_err(failed)?;
        Ok(party::judge(&ceremony, party, &secret, &joins, &dealings, &self.0.key)?)
    }

    /// Round 4: keeps the share, flushed, before it signs.
    ///
    /// # Errors
    /// It did not join, the transcript does not hold, this evaluator is out, or
    /// it concluded something else.
    pub(crate) async fn conclude(
        &self,
        transcript: &wire::CeremonyTranscript,
    ) -> Result<wire::ConcludeResponse, Refusal> {
        let _step = self.0.step.lock().await;
        let (ceremony, mut file) = self.begun(&transcript.ceremony).await?;
        let outcome = Outcome::of(&ceremony, transcript)?;
        let (party, result) = (self.party(&ceremony)?, outcome.result());
        match &file.concluded {
            Some(concluded) if concluded.result != hex::encode(&result) => {
                let message = "this evaluator concluded another transcript; plan another ceremony";
                return Err(Refusal::new(Reason::RequestIdReused, message));
            }
            Some(_) => {}
            None => {
                let secret = self.0.files.secret(&file).map_err(failed)?;
                let share = party::share_of(&ceremony, party, &secret, &outcome)?;
                let kept = self.0.files.conclude(&mut file, party, &share, &result, &*self.0.entropy);
                kept.map_err(failed)?;
            }
        }
        let conclusion = Some(conclusion::sign(&result, party, &self.0.key));
        Ok(wire::ConcludeResponse { result, conclusion })
    }

    fn verify(
        &self,
        plan: &wire::SignedStatement,
    ) -> Result<chancery_directory_core::governance::VerifiedStatement, Error> {
        let trust = self.0.log.trust();
        governance::verify(plan, trust.federation(), trust.governance())
    }

    /// A ceremony that this evaluator joined, upon what is in force.
    async fn begun(&self, id: &[u8]) -> Result<(Ceremony, CeremonyFile), Refusal> {
        let id = id.try_into().map_err(|_| Error::Field("a ceremony's id has not 32 bytes"))?;
        let file = self.0.files.ceremony(&id).map_err(failed)?;
        let file = file.ok_or(Error::Ceremony("this evaluator did not join the ceremony"))?;
        let plan = self.verify(&decode(&file.plan)?)?;
        let ceremony = match Ceremony::new(&plan, &self.0.log.state()) {
            Ok(ceremony) => ceremony,
            // Started again since, or behind the log.
            Err(_) => {
                self.look().await?;
                Ceremony::new(&plan, &self.0.log.state())?
            }
        };
        Ok((ceremony, file))
    }

    fn party(&self, ceremony: &Ceremony) -> Result<u32, Error> {
        ceremony.party(&self.0.id).ok_or(Error::Ceremony("this evaluator is no party of the ceremony"))
    }

    /// The share of a key epoch and generation.
    fn serving(&self, named: (u32, u32)) -> Option<Arc<Serving>> {
        let serving = self.0.serving.read().unwrap_or_else(PoisonError::into_inner);
        serving.iter().find(|s| (s.key_epoch, s.generation) == named).cloned()
    }

    /// Looks at the log because a caller knows more, but not for every call. When
    /// a ceremony was concluded here, the log is about to put its share in force.
    async fn look_for_caller(&self) {
        let mut asked = self.0.asked.lock().await;
        if let Some(at) = *asked {
            if self.awaits_force() {
                tokio::time::sleep_until(at + ASK_SOON).await;
            } else if at.elapsed() < ASK_AGAIN {
                return;
            }
        }
        *asked = Some(Instant::now());
        if let Err(refusal) = self.look().await {
            tracing::warn!(reason = %refusal.reason, "evaluator.log.fail");
        }
    }

    fn awaits_force(&self) -> bool {
        let begun = self.0.files.ceremonies();
        begun.is_ok_and(|begun| begun.iter().any(|file| file.concluded.is_some()))
    }

    /// Looks at the log, and puts in force what it puts in force.
    async fn look(&self) -> Result<(), Refusal> {
        self.0.log.ask().await?;
        self.settle().map_err(failed)
    }

    fn settle(&self) -> Result<(), DirectoryError> {
        let (state, files) = (self.0.log.state(), &self.0.files);
        let Some(epoch) = state.evaluators() else { return Ok(()) };
        let current = (epoch.key_epoch, epoch.generation);
        let mut serving = self.0.serving.write().unwrap_or_else(PoisonError::into_inner);
        for mut file in files.ceremonies()? {
            let id: Option<[u8; 32]> = hex::decode(&file.id).ok().and_then(|id| id.try_into().ok());
            let in_force = id.is_some_and(|id| state.concluded(&id).is_some());
            let listed = epoch.evaluators.iter().any(|share| share.evaluator == self.0.id);
            if in_force && listed && file.concluded.is_some() {
                files.put_in_force(&mut file)?;
                *serving = files.shares()?.into_iter().map(Arc::new).collect();
                tracing::info!(key_epoch = current.0, generation = current.1, "evaluator.share.in_force");
            } else if (file.key_epoch, file.generation) <= current {
                files.forget(&file)?;
            }
        }
        let former = state.former_evaluators().map(|epoch| (epoch.key_epoch, epoch.generation));
        // Shares of two generations never combine: one that is in force no more is of no use.
        let is_spent = |s: &Serving| {
            (s.key_epoch, s.generation) < current && Some((s.key_epoch, s.generation)) != former
        };
        for spent in serving.iter().filter(|s| is_spent(s)) {
            files.erase_share(spent.key_epoch)?;
        }
        serving.retain(|s| !is_spent(s));
        Ok(())
    }
}

/// The text stays in the log: it may name files.
fn failed(error: DirectoryError) -> Refusal {
    match error {
        DirectoryError::Refused(refusal) => refusal,
        DirectoryError::Core(error) => error.into(),
        error => {
            tracing::error!(%error, "evaluator");
            Refusal::new(Reason::Internal, "the evaluator's files failed")
        }
    }
}

fn decode<T: prost::Message + Default>(text: &str) -> Result<T, Refusal> {
    let broken = || Refusal::new(Reason::Internal, "the evaluator's files failed");
    let bytes = hex::decode(text).map_err(|_| broken())?;
    T::decode(Bytes::from(bytes)).map_err(|_| broken())
}
