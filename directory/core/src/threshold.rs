//! A key shared among evaluators: shares of a secret polynomial (Shamir),
//! commitments to it (Feldman), and joining what evaluators answer, in the
//! exponent (TOPPSS, ePrint 2017/363). Nobody puts the key itself together;
//! how evaluators agree on a polynomial is [`crate::ceremony`]'s.

use crate::Error;
use crate::oprf::{Element, SecretKey, random_scalar};
use chancery_types::Entropy;
use curve25519_dalek::ristretto::RistrettoPoint;
use curve25519_dalek::scalar::Scalar;
use curve25519_dalek::traits::VartimeMultiscalarMul as _;
use std::fmt;
use zeroize::{ZeroizeOnDrop, Zeroizing};

/// Most evaluators of one epoch. A ceremony of this many fits into one entry of the log.
pub const MAX_EVALUATORS: usize = 16;

/// A secret polynomial; its value at 0 is what is shared.
#[derive(ZeroizeOnDrop)]
pub struct Polynomial(Vec<Scalar>);

impl Polynomial {
    /// A random one that shares `secret`: `threshold` shares give it again.
    pub fn sharing(secret: &SecretKey, threshold: u32, entropy: &dyn Entropy) -> Self {
        let others = (1..threshold).map(|_| random_scalar(entropy));
        Self(std::iter::once(secret.0).chain(others).collect())
    }

    /// The share with this index, from 1.
    pub fn share(&self, index: u32) -> Zeroizing<[u8; 32]> {
        let at = Scalar::from(index);
        let value = Zeroizing::new(self.0.iter().rev().fold(Scalar::ZERO, |sum, c| sum * at + c));
        Zeroizing::new(value.to_bytes())
    }

    /// What is public about it.
    ///
    /// # Errors
    /// A coefficient is zero; none of a random one is.
    pub fn commitments(&self) -> Result<Commitments, Error> {
        let elements = self.0.iter().map(|c| Element::new(RistrettoPoint::mul_base(c)));
        Ok(Commitments(elements.collect::<Result<_, _>>()?))
    }
}

impl fmt::Debug for Polynomial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Polynomial")
    }
}

/// Commitments to a polynomial's coefficients, the constant one first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Commitments(Vec<Element>);

impl Commitments {
    /// From a message.
    ///
    /// # Errors
    /// Not `threshold` elements, or one is none.
    pub fn from_wire(elements: &[bytes::Bytes], threshold: u32) -> Result<Self, Error> {
        if elements.len() != threshold as usize {
            return Err(Error::Field("commitments are as many as the threshold"));
        }
        Ok(Self(elements.iter().map(|e| e.as_ref().try_into()).collect::<Result<_, _>>()?))
    }

    /// For a message.
    pub fn to_wire(&self) -> Vec<bytes::Bytes> {
        self.0.iter().map(Element::to_wire).collect()
    }

    /// Commitment to the value at 0: the public key of what is shared.
    ///
    /// # Errors
    /// Never: there is at least one.
    pub fn constant(&self) -> Result<&Element, Error> {
        self.0.first().ok_or(Error::Internal("a polynomial has no coefficients"))
    }

    /// Public key of the share with this index.
    ///
    /// # Errors
    /// The share would be zero.
    pub fn public_share(&self, index: u32) -> Result<Element, Error> {
        let at = Scalar::from(index);
        Element::new(self.0.iter().rev().fold(RistrettoPoint::default(), |sum, c| sum * at + c.point))
    }

    /// The polynomial that is the sum of others, each times its weight.
    ///
    /// # Errors
    /// There are none, their degrees differ, or coefficients cancel out.
    pub fn sum<'a>(parts: impl IntoIterator<Item = (&'a Weight, &'a Self)>) -> Result<Self, Error> {
        const WRONG: Error = Error::Field("commitments to add up have one degree");
        let mut sums: Vec<RistrettoPoint> = Vec::new();
        for (weight, part) in parts {
            if sums.is_empty() {
                sums.resize(part.0.len(), RistrettoPoint::default());
            }
            if sums.len() != part.0.len() {
                return Err(WRONG);
            }
            for (sum, element) in sums.iter_mut().zip(&part.0) {
                *sum += element.point * weight.0;
            }
        }
        if sums.is_empty() {
            return Err(WRONG);
        }
        Ok(Self(sums.into_iter().map(Element::new).collect::<Result<_, _>>()?))
    }
}

/// What one part counts in a sum: 1, or its Lagrange coefficient at 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Weight(Scalar);

impl Weight {
    /// Counts as it is.
    pub const ONE: Self = Self(Scalar::ONE);

    /// Lagrange coefficients at 0 of these indices, in their order.
    ///
    /// # Errors
    /// None, an index of 0, or one twice.
    pub fn lagrange(indices: &[u32]) -> Result<Vec<Self>, Error> {
        const WRONG: Error = Error::Field("indices of shares are distinct and count from 1");
        if indices.is_empty() || indices.contains(&0) {
            return Err(WRONG);
        }
        let weight = |i: &u32| {
            let (mut above, mut below) = (Scalar::ONE, Scalar::ONE);
            for j in indices.iter().filter(|j| *j != i) {
                above *= Scalar::from(*j);
                below *= Scalar::from(*j) - Scalar::from(*i);
            }
            above * below.invert()
        };
        let distinct = indices.iter().collect::<std::collections::BTreeSet<_>>().len();
        if distinct == indices.len() {
            Ok(indices.iter().map(|i| Self(weight(i))).collect())
        } else {
            Err(WRONG)
        }
    }
}

/// A share made of parts from several dealers, each times its weight.
///
/// # Errors
/// A part is no canonical scalar, or the sum is zero.
pub fn join_shares(parts: &[(Weight, Zeroizing<[u8; 32]>)]) -> Result<SecretKey, Error> {
    let mut sum = Zeroizing::new(Scalar::ZERO);
    for (weight, part) in parts {
        let part = Option::<Scalar>::from(Scalar::from_canonical_bytes(**part));
        *sum += weight.0 * *Zeroizing::new(part.ok_or(Error::Field("a share is not a canonical scalar"))?);
    }
    SecretKey::from_bytes(&Zeroizing::new(sum.to_bytes()))
}

/// Whether `share` is the value at `index` of the polynomial committed to.
pub fn is_share(share: &[u8; 32], index: u32, commitments: &Commitments) -> bool {
    let public = SecretKey::from_bytes(share).and_then(|share| share.public_key());
    matches!((public, commitments.public_share(index)), (Ok(a), Ok(b)) if a == b)
}

/// Joins partial evaluations of one batch, element by element.
///
/// # Errors
/// Batches of different length, or a result is the identity.
pub fn combine(parts: &[(Weight, &[Element])]) -> Result<Vec<Element>, Error> {
    let length = parts.first().map_or(0, |(_, batch)| batch.len());
    if parts.iter().any(|(_, batch)| batch.len() != length) {
        return Err(Error::Field("partial evaluations are of batches of one length"));
    }
    let weights: Vec<_> = parts.iter().map(|(weight, _)| weight.0).collect();
    let joined = |at: usize| {
        // Each batch has the place: their lengths are the same.
        let points = parts.iter().map(|(_, batch)| batch.get(at).map_or_else(Default::default, |e| e.point));
        Element::new(RistrettoPoint::vartime_multiscalar_mul(&weights, points))
    };
    (0..length).map(joined).collect()
}

#[cfg(test)]
mod tests;
