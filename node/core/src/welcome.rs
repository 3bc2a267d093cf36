//! Cuts a Welcome down to the part of some of its joiners (RFC 9420 §12.4.3.1).
//! The server needs no key for it: the parts lie side by side, each named by
//! its KeyPackageRef. What an alias does not need it does not get.

use crate::codec::{Reader, malformed, put_length};
use bytes::{BufMut as _, Bytes, BytesMut};
use chancery_types::{KeyPackageRef, Refusal};

/// `ProtocolVersion` mls10, then `WireFormat` mls_welcome.
const HEADER: [u8; 4] = [0, 1, 0, 3];

/// A Welcome taken apart.
pub struct Welcome {
    /// Header and cipher suite as they stand.
    head: Bytes,
    /// `EncryptedGroupSecrets` by KeyPackageRef.
    parts: Vec<(KeyPackageRef, Bytes)>,
    /// `encrypted_group_info` with its length.
    group_info: Bytes,
}

impl Welcome {
    /// Takes an MLSMessage apart.
    ///
    /// # Errors
    /// INVALID_FIELD: it is no Welcome.
    pub fn parse(message: &Bytes) -> Result<Self, Refusal> {
        let mut reader = Reader(message.clone());
        let head = reader.take(6)?;
        if !head.starts_with(&HEADER) {
            return Err(malformed());
        }
        let mut secrets = Reader(reader.vector()?);
        let group_info = reader.0.clone();
        reader.vector()?;
        if !reader.0.is_empty() {
            return Err(malformed());
        }
        let mut parts = Vec::new();
        while !secrets.0.is_empty() {
            let whole = secrets.0.clone();
            let reference = KeyPackageRef::try_from(&secrets.vector()?).map_err(|_| malformed())?;
            // HPKECiphertext: kem_output, ciphertext.
            secrets.vector()?;
            secrets.vector()?;
            parts.push((reference, whole.slice(..whole.len() - secrets.0.len())));
        }
        Ok(Self { head, parts, group_info })
    }

    /// The MLSMessage that holds only the parts named.
    ///
    /// # Errors
    /// INVALID_FIELD: a KeyPackageRef has no part in the Welcome.
    pub fn cut(&self, key_packages: &[KeyPackageRef]) -> Result<Bytes, Refusal> {
        let mut chosen = Vec::with_capacity(key_packages.len());
        for wanted in key_packages {
            let part = self.parts.iter().find(|(reference, _)| reference == wanted);
            chosen.push(&part.ok_or_else(|| Refusal::field("a KeyPackageRef is not in the Welcome"))?.1);
        }
        let length: usize = chosen.iter().map(|part| part.len()).sum();
        let mut out = BytesMut::with_capacity(self.head.len() + 4 + length + self.group_info.len());
        out.put_slice(&self.head);
        put_length(&mut out, length)?;
        chosen.iter().for_each(|part| out.put_slice(part));
        out.put_slice(&self.group_info);
        Ok(out.freeze())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn vector(bytes: &[u8]) -> Vec<u8> {
        let mut out = BytesMut::new();
        put_length(&mut out, bytes.len()).unwrap();
        [out.as_ref(), bytes].concat()
    }

    fn part(reference: u8, size: usize) -> Vec<u8> {
        [vector(&[reference; 32]), vector(&[1; 32]), vector(&vec![2; size])].concat()
    }

    fn welcome(parts: &[Vec<u8>]) -> Bytes {
        [&HEADER[..], &[0, 1], &vector(&parts.concat()), &vector(&[7; 100])].concat().into()
    }

    fn reference(byte: u8) -> KeyPackageRef {
        KeyPackageRef::from_bytes([byte; 32])
    }

    #[test]
    fn a_joiner_gets_its_part_alone() {
        let parts = [part(1, 80), part(2, 20_000), part(3, 5)];
        let whole = Welcome::parse(&welcome(&parts)).unwrap();
        for (index, byte) in [1, 2, 3].into_iter().enumerate() {
            assert_eq!(whole.cut(&[reference(byte)]).unwrap(), welcome(&parts[index..=index]));
        }
        let all: Vec<_> = [1, 2, 3].map(reference).into();
        assert_eq!(whole.cut(&all).unwrap(), welcome(&parts));
        assert!(whole.cut(&[reference(4)]).is_err());
    }

    #[test]
    fn lengths_must_be_shortest() {
        let mut bytes = welcome(&[part(1, 5)]).to_vec();
        assert!(Welcome::parse(&bytes.clone().into()).is_ok());
        bytes.push(0);
        assert!(Welcome::parse(&bytes.into()).is_err());
        let long = [&HEADER[..], &[0, 1], &[0x40, 0x00], &vector(&[])].concat();
        assert!(Welcome::parse(&long.into()).is_err());
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(tail in proptest::collection::vec(any::<u8>(), 0..256)) {
            let bytes: Bytes = [&HEADER[..], &[0, 1], &tail].concat().into();
            let _ = Welcome::parse(&bytes);
        }
    }
}
