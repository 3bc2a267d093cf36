//! From identifiers to handles: blinding a batch, checking the evaluators'
//! answers, splitting each output into the public handle and the secret key
//! of the record behind it. The group operations are [`crate::oprf`]'s.

use crate::Error;
use crate::EvaluatorEpoch;
use crate::oprf::{self, Blind, Element, MAX_BATCH, Proof};
use crate::threshold::{self, Weight};
use chancery_proto::directory::v1 as wire;
use chancery_types::{Entropy, Handle, Identifier};
use hkdf::Hkdf;
use sha2::Sha512;
use std::collections::BTreeSet;
use std::fmt;
use zeroize::{ZeroizeOnDrop, Zeroizing};

/// Opens the sealed part of one handle's record. Whoever can compute the
/// handle can compute it, nobody else.
#[derive(Clone, ZeroizeOnDrop)]
pub struct RecordKey([u8; 32]);

impl RecordKey {
    /// Its bytes, to seal and open with, or to keep beside the handle.
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// From where it was kept.
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }
}

impl fmt::Debug for RecordKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("RecordKey")
    }
}

/// Splits an output: the first 32 bytes are the handle; HKDF-SHA-512 of the
/// other 32, no salt, info "chancery record key v1", 32 bytes long, is the record key.
pub fn split(output: &[u8; oprf::OUTPUT_LENGTH]) -> Result<(Handle, RecordKey), Error> {
    let (handle, secret) = output.split_at(Handle::LENGTH);
    let mut key = RecordKey([0; 32]);
    Hkdf::<Sha512>::new(None, secret)
        .expand(b"chancery record key v1", &mut key.0)
        .map_err(|_| Error::Internal("a record key cannot be derived"))?;
    Ok((Handle::try_from(handle)?, key))
}

/// A batch of identifiers under way: what the evaluators see, and what takes
/// their answer back to the identifiers. Erased when dropped.
pub struct Blinded {
    inputs: Vec<(Zeroizing<Vec<u8>>, Blind)>,
    elements: Vec<Element>,
}

impl Blinded {
    /// Blinds 1 to 1,000 identifiers.
    ///
    /// # Errors
    /// None or too many.
    pub fn new(identifiers: &[Identifier], entropy: &dyn Entropy) -> Result<Self, Error> {
        if identifiers.is_empty() {
            return Err(Error::Field("a batch is empty"));
        }
        if identifiers.len() > MAX_BATCH {
            return Err(Error::TooLarge("a batch has more than 1,000 identifiers"));
        }
        let mut blinded = Self {
            inputs: Vec::with_capacity(identifiers.len()),
            elements: Vec::with_capacity(identifiers.len()),
        };
        for identifier in identifiers {
            let input = identifier.oprf_input();
            let (blind, element) = oprf::blind(&input, entropy)?;
            blinded.inputs.push((input, blind));
            blinded.elements.push(element);
        }
        Ok(blinded)
    }

    /// What to send to each evaluator of the epoch.
    pub fn request(&self, epoch: &EvaluatorEpoch) -> wire::EvaluateRequest {
        wire::EvaluateRequest {
            key_epoch: epoch.key_epoch,
            generation: epoch.generation,
            blinded_elements: self.elements.iter().map(Element::to_wire).collect(),
        }
    }

    /// Checks the answers of an epoch's evaluators and gives handle and record
    /// key of each identifier, in the order of the batch.
    ///
    /// # Errors
    /// Fewer answers than the threshold, two of one evaluator, or a wrong one,
    /// which is named: leave it out and ask another evaluator.
    pub fn finish(
        &self,
        answers: &[wire::EvaluateResponse],
        epoch: &EvaluatorEpoch,
    ) -> Result<Vec<(Handle, RecordKey)>, Error> {
        let threshold = epoch.threshold as usize;
        if answers.len() < threshold {
            return Err(Error::TooFewEvaluators { answers: answers.len(), threshold: epoch.threshold });
        }
        let mut seen = BTreeSet::new();
        let mut checked = Vec::with_capacity(answers.len());
        for answer in answers {
            if !seen.insert(answer.index) {
                return Err(Error::WrongEvaluation { index: answer.index, why: "it answered twice" });
            }
            checked.push((answer.index, self.check(answer, epoch)?));
        }
        checked.truncate(threshold);
        let indices: Vec<_> = checked.iter().map(|(index, _)| *index).collect();
        let weights = Weight::lagrange(&indices)?;
        let parts: Vec<_> = weights.into_iter().zip(checked.iter().map(|(_, e)| e.as_slice())).collect();
        let evaluated = threshold::combine(&parts)?;
        let outputs = self.inputs.iter().zip(&evaluated);
        outputs.map(|((input, blind), e)| split(&*oprf::finalize(input, blind, e)?)).collect()
    }

    fn check(&self, answer: &wire::EvaluateResponse, epoch: &EvaluatorEpoch) -> Result<Vec<Element>, Error> {
        let wrong = |why| Error::WrongEvaluation { index: answer.index, why };
        let share = epoch.evaluator(answer.index).ok_or(wrong("it is not in the epoch"))?;
        if answer.evaluated_elements.len() != self.elements.len() {
            return Err(wrong("it answered another number of elements"));
        }
        let evaluated = answer
            .evaluated_elements
            .iter()
            .map(|e| Element::try_from(e.as_ref()).map_err(|_| wrong("an element is not valid")))
            .collect::<Result<Vec<_>, _>>()?;
        let proof = Proof::try_from(answer.proof.as_ref()).map_err(|_| wrong("its proof is malformed"))?;
        if !proof.verifies(&share.public_share, &self.elements, &evaluated) {
            return Err(wrong("its proof does not verify under its public share"));
        }
        Ok(evaluated)
    }
}

impl fmt::Debug for Blinded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Blinded({})", self.elements.len())
    }
}

/// A request that an evaluator may answer: elements that are canonical, for the
/// epoch and generation that it serves.
pub struct Checked(Vec<Element>);

impl Checked {
    /// How many identifiers.
    #[expect(clippy::len_without_is_empty, reason = "there is at least one")]
    pub fn len(&self) -> usize {
        self.0.len()
    }
}

/// Checks a request, before it is counted.
///
/// # Errors
/// Another epoch or generation than `serving`'s, an element that is not
/// canonical or the identity, an empty or too long batch.
pub fn check(request: wire::EvaluateRequest, serving: &Serving) -> Result<Checked, Error> {
    if (request.key_epoch, request.generation) != (serving.key_epoch, serving.generation) {
        return Err(Error::WrongKeyEpoch);
    }
    match request.blinded_elements.len() {
        0 => return Err(Error::Field("a batch is empty")),
        1..=MAX_BATCH => {}
        _ => return Err(Error::TooLarge("a batch has more than 1,000 elements")),
    }
    let elements = request.blinded_elements.iter().map(|e| e.as_ref().try_into());
    Ok(Checked(elements.collect::<Result<_, _>>()?))
}

/// An evaluator's answer to a request, as the evaluator makes it.
///
/// # Errors
/// Never: the request was checked.
pub fn answer(
    request: &Checked,
    serving: &Serving,
    entropy: &dyn Entropy,
) -> Result<wire::EvaluateResponse, Error> {
    let (evaluated, proof) = serving.share.evaluate(&request.0, entropy)?;
    Ok(wire::EvaluateResponse {
        index: serving.index,
        evaluated_elements: evaluated.iter().map(Element::to_wire).collect(),
        proof: bytes::Bytes::copy_from_slice(&proof.to_bytes()),
    })
}

/// The share an evaluator answers with, and where it belongs.
#[derive(Debug)]
pub struct Serving {
    /// Key epoch, from 1.
    pub key_epoch: u32,
    /// Generation of the shares, from 1.
    pub generation: u32,
    /// Index of the share, from 1.
    pub index: u32,
    /// The share.
    pub share: oprf::SecretKey,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::World;
    use chancery_types::entropy::SeededEntropy;

    fn identifiers() -> Vec<Identifier> {
        ["+32470123456", "+4915123456789", "+4741234567"]
            .iter()
            .map(|n| Identifier::parse("e164", n).unwrap())
            .collect()
    }

    fn epoch(world: &World) -> &EvaluatorEpoch {
        world.state.evaluators().unwrap()
    }

    fn serving(world: &World, position: usize) -> Serving {
        let serving = &world.evaluators.servings[position];
        Serving { share: oprf::SecretKey::from_bytes(&serving.share.to_bytes()).unwrap(), ..*serving }
    }

    fn answered(
        request: &wire::EvaluateRequest,
        serving: &Serving,
        world: &World,
    ) -> Result<wire::EvaluateResponse, Error> {
        answer(&check(request.clone(), serving)?, serving, &world.entropy)
    }

    /// What the evaluators at these positions answer.
    fn asked(
        world: &World,
        blinded: &Blinded,
        positions: &[usize],
    ) -> (wire::EvaluateRequest, Vec<wire::EvaluateResponse>) {
        let request = blinded.request(epoch(world));
        let answers = positions
            .iter()
            .map(|at| answered(&request, &world.evaluators.servings[*at], world).unwrap())
            .collect();
        (request, answers)
    }

    #[test]
    fn the_same_identifier_gives_the_same_handle_whoever_answers() {
        let world = World::new(&SeededEntropy::new(1));
        let all = identifiers();
        let run = |identifiers: &[Identifier], indices: [usize; 2]| {
            let blinded = Blinded::new(identifiers, &world.entropy).unwrap();
            let (request, answers) = asked(&world, &blinded, &indices);
            (request, blinded.finish(&answers, epoch(&world)).unwrap())
        };
        let (request, batch) = run(&all, [0, 1]);
        let (other_request, alone) = run(&all[1..2], [2, 0]);
        assert_ne!(request.blinded_elements[1], other_request.blinded_elements[0]);
        assert_eq!(batch[1].0, alone[0].0);
        assert_eq!(batch[1].1.as_bytes(), alone[0].1.as_bytes());
        assert_ne!(batch[0].0, batch[1].0);
        assert_ne!(batch[0].1.as_bytes(), batch[1].1.as_bytes());
        assert_ne!(batch[0].0.as_bytes(), batch[0].1.as_bytes());
        assert_eq!(format!("{:?}", batch[0]), "(Handle, RecordKey)");
    }

    #[test]
    fn wrong_answers_are_named_and_others_take_their_place() {
        let world = World::new(&SeededEntropy::new(2));
        let blinded = Blinded::new(&identifiers(), &world.entropy).unwrap();
        let good = asked(&world, &blinded, &[0, 1, 2]).1;
        let expected = blinded.finish(&good, epoch(&world)).unwrap()[0].0;
        let spoil = |change: &dyn Fn(&mut wire::EvaluateResponse)| {
            let mut answers = good.clone();
            change(&mut answers[1]);
            let named = blinded.finish(&answers, epoch(&world)).unwrap_err();
            answers.remove(1);
            assert_eq!(blinded.finish(&answers, epoch(&world)).unwrap()[0].0, expected);
            matches!(named, Error::WrongEvaluation { index: 2 | 9, .. })
        };
        assert!(spoil(&|r| r.evaluated_elements.swap(0, 1)));
        assert!(spoil(&|r| drop(r.evaluated_elements.pop())));
        assert!(spoil(&|r| r.evaluated_elements[0] = vec![0; 32].into()));
        assert!(spoil(&|r| r.proof = vec![0; 64].into()));
        assert!(spoil(&|r| r.proof = vec![0; 63].into()));
        assert!(spoil(&|r| r.index = 9));
        // Another's share, under its own proof.
        let other = Serving { share: oprf::SecretKey::random(&world.entropy), ..serving(&world, 1) };
        let forged = answered(&blinded.request(epoch(&world)), &other, &world).unwrap();
        assert!(spoil(&|r| *r = forged.clone()));
    }

    #[test]
    fn thresholds_are_held() {
        let world = World::new(&SeededEntropy::new(3));
        let blinded = Blinded::new(&identifiers(), &world.entropy).unwrap();
        let one = asked(&world, &blinded, &[0]).1;
        for (answers, few) in [(&[][..], 0), (&one, 1)] {
            let refused = blinded.finish(answers, epoch(&world)).unwrap_err();
            assert_eq!(refused, Error::TooFewEvaluators { answers: few, threshold: 2 });
        }
        let twice = [one[0].clone(), one[0].clone()];
        assert!(matches!(
            blinded.finish(&twice, epoch(&world)),
            Err(Error::WrongEvaluation { index: 1, .. })
        ));
    }

    #[test]
    fn evaluators_refuse_what_is_not_theirs() {
        let world = World::new(&SeededEntropy::new(4));
        let (entropy, serving) = (&world.entropy, serving(&world, 0));
        let request = Blinded::new(&identifiers(), entropy).unwrap().request(epoch(&world));
        let refused = |change: &dyn Fn(&mut wire::EvaluateRequest)| {
            let mut request = request.clone();
            change(&mut request);
            answered(&request, &serving, &world).map(drop).unwrap_err()
        };
        assert_eq!(refused(&|r| r.key_epoch = 2), Error::WrongKeyEpoch);
        assert_eq!(refused(&|r| r.generation = 2), Error::WrongKeyEpoch);
        assert_eq!(refused(&|r| r.blinded_elements[0] = vec![0; 32].into()), Error::Element);
        assert_eq!(refused(&|r| r.blinded_elements[0] = vec![0xff; 32].into()), Error::Element);
        assert!(matches!(refused(&|r| r.blinded_elements.clear()), Error::Field(_)));
        let element = request.blinded_elements[0].clone();
        let many = move |r: &mut wire::EvaluateRequest| r.blinded_elements = vec![element.clone(); 1_001];
        assert!(matches!(refused(&many), Error::TooLarge(_)));
        assert!(Blinded::new(&[], entropy).is_err());
        assert!(Blinded::new(&vec![identifiers().remove(0); 1_001], entropy).is_err());
    }
}
