//! Carries messages between evaluators through the rounds of a ceremony, and
//! hands what it came to to the directory. Whoever does so needs no trust and
//! learns no secret; who does not answer, or says what does not hold, is left out.

use crate::DirectoryError;
use bytes::Bytes;
use chancery_directory_core::ceremony::transcript::{Dealings, Outcome};
use chancery_directory_core::ceremony::{Ceremony, Fault, Joins};
use chancery_directory_core::{Error, EvaluatorEpoch, Trust, governance};
use chancery_directory_log::{Follower, directory_call};
use chancery_kit::tls::{Credentials, connect_lazy, connect_pinned};
use chancery_pki_core::Party;
use chancery_proto::directory::v1 as wire;
use chancery_proto::directory::v1::ceremony_service_client::CeremonyServiceClient;
use chancery_types::{NodeId, Refusal};
use futures::future::join_all;
use std::sync::Arc;
use tonic::transport::Channel;

/// What a ceremony came to.
#[derive(Debug)]
pub struct Report {
    /// In force from now on.
    pub epoch: EvaluatorEpoch,
    /// Index of its entry in the log.
    pub index: u64,
    /// Evaluators that were found out.
    pub faults: Vec<Fault>,
    /// Evaluators that did not answer or refused, and why.
    pub absent: Vec<(NodeId, Refusal)>,
}

/// Holds the ceremony that governance planned. Safe to repeat: evaluators say
/// the same again.
///
/// # Errors
/// The plan does not follow what is in force, too few evaluators take part, or
/// the directory refuses.
pub async fn hold(
    plan: wire::SignedStatement,
    directory: &str,
    credentials: Arc<Credentials>,
    trust: &Trust,
) -> Result<Report, DirectoryError> {
    let (channel, _) = connect_lazy(directory, Party::Directory, Arc::clone(&credentials))?;
    let log = Follower::new(trust.clone(), channel);
    log.ask().await?;
    let verified = governance::verify(&plan, trust.federation(), trust.governance())?;
    let ceremony = Ceremony::new(&verified, &log.state())?;
    let mut round = Round::new(&ceremony, &credentials)?;

    let mut joins = round
        .ask(
            |_| true,
            |mut evaluator| {
                let request = wire::JoinRequest { plan: Some(plan.clone()) };
                async move { Ok(directory_call(evaluator.join(request)).await?.join) }
            },
        )
        .await;
    joins.retain(|id, join| round.keep(id, Joins::check(&ceremony, join)));
    let joins = joins.in_order(|id| ceremony.party(id));
    let joined = Joins::verify(&ceremony, &joins)?;

    let id = Bytes::copy_from_slice(ceremony.id());
    let mut dealings = round
        .ask(
            |id| ceremony.dealer(id).is_some(),
            |mut evaluator| {
                let request = wire::DealRequest { ceremony: id.clone(), joins: joins.clone() };
                async move { Ok(directory_call(evaluator.deal(request)).await?.dealing) }
            },
        )
        .await;
    dealings.retain(|id, dealing| {
        round.keep(id, Dealings::verify(&ceremony, &joined, std::slice::from_ref(dealing)).map(drop))
    });
    let dealings = dealings.in_order(|id| ceremony.dealer(id));
    let dealt = Dealings::verify(&ceremony, &joined, &dealings)?;

    let mut verdicts = round
        .ask(
            |id| ceremony.party(id).is_some_and(|party| joined.has(party)),
            |mut evaluator| {
                let (joins, dealings) = (joins.clone(), dealings.clone());
                let request = wire::JudgeRequest { ceremony: id.clone(), joins, dealings };
                async move { Ok(directory_call(evaluator.judge(request)).await?.verdict) }
            },
        )
        .await;
    verdicts.retain(|id, verdict| round.keep(id, dealt.check_verdict(&ceremony, &joined, verdict)));
    let verdicts = verdicts.in_order(|id| ceremony.party(id));

    let transcript = wire::CeremonyTranscript { ceremony: id, joins, dealings, verdicts };
    let outcome = Outcome::of(&ceremony, &transcript)?;
    let holds = |id: &NodeId| outcome.epoch.evaluators.iter().any(|share| share.evaluator == *id);
    let result = outcome.result();
    let conclusions = round
        .ask(holds, |mut evaluator| {
            let request = wire::ConcludeRequest { transcript: Some(transcript.clone()) };
            let result = result.clone();
            async move {
                let said = directory_call(evaluator.conclude(request)).await?;
                Ok(said.conclusion.filter(|_| said.result == result))
            }
        })
        .await
        .in_order(|id| ceremony.party(id));
    let concluded =
        wire::ConcludedCeremony { plan: Some(plan), transcript: Some(transcript), result, conclusions };
    let request = wire::SubmitCeremonyRequest { ceremony: Some(concluded) };
    let index = directory_call(log.directory().submit_ceremony(request)).await?.index;
    log.ask().await?;
    let epoch = log.state().evaluators().cloned();
    let epoch = epoch.ok_or(Error::Proof("the directory does not show the ceremony that it logged"))?;
    Ok(Report { epoch, index, faults: outcome.faults, absent: round.absent })
}

/// Those who take part, and those who dropped out.
struct Round {
    evaluators: Vec<(NodeId, CeremonyServiceClient<Channel>)>,
    absent: Vec<(NodeId, Refusal)>,
}

/// What each said.
struct Said<T>(Vec<(NodeId, T)>);

impl<T> Said<T> {
    fn retain(&mut self, mut keep: impl FnMut(&NodeId, &T) -> bool) {
        self.0.retain(|(id, said)| keep(id, said));
    }

    fn in_order(mut self, index: impl Fn(&NodeId) -> Option<u32>) -> Vec<T> {
        self.0.sort_by_key(|(id, _)| index(id));
        self.0.into_iter().map(|(_, said)| said).collect()
    }
}

impl Round {
    fn new(ceremony: &Ceremony, credentials: &Arc<Credentials>) -> Result<Self, DirectoryError> {
        let mut evaluators = Vec::new();
        for (id, endpoints, pin) in ceremony.endpoints() {
            let endpoint = endpoints.first().ok_or(Error::Field("a party has no endpoint"))?;
            let party = Party::Evaluator(id.clone());
            let channel = connect_pinned(endpoint, party, pin, Arc::clone(credentials))?;
            evaluators.push((id, CeremonyServiceClient::new(channel)));
        }
        Ok(Self { evaluators, absent: Vec::new() })
    }

    /// Asks all of them at once; whoever does not answer drops out.
    async fn ask<T, F>(
        &mut self,
        whom: impl Fn(&NodeId) -> bool,
        ask: impl Fn(CeremonyServiceClient<Channel>) -> F,
    ) -> Said<T>
    where
        F: Future<Output = Result<Option<T>, Refusal>>,
    {
        let asked: Vec<_> = self.evaluators.iter().filter(|(id, _)| whom(id)).cloned().collect();
        let answers = join_all(asked.iter().map(|(_, evaluator)| ask(evaluator.clone()))).await;
        let mut said = Vec::new();
        for ((id, _), answer) in asked.into_iter().zip(answers) {
            match answer {
                Ok(answer) => said.extend(answer.map(|answer| (id, answer))),
                Err(refusal) => self.drop_out(id, refusal),
            }
        }
        Said(said)
    }

    /// Whether what an evaluator said holds; if not, it drops out.
    fn keep(&mut self, id: &NodeId, checked: Result<(), Error>) -> bool {
        match checked {
            Ok(()) => true,
            Err(error) => {
                self.drop_out(id.clone(), error.into());
                false
            }
        }
    }

    fn drop_out(&mut self, id: NodeId, refusal: Refusal) {
        tracing::warn!(evaluator = %id, %refusal, "ceremony.evaluator.out");
        self.evaluators.retain(|(other, _)| *other != id);
        self.absent.push((id, refusal));
    }
}
