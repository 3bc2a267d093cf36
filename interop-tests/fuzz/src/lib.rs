//! What each decoder that faces a stranger, and each state machine, must hold whatever
//! bytes it gets: one [`Target`] for each, in a file by family. A target decodes as the
//! product does at its door, and asserts what there is to assert beyond not panicking:
//! that what was decoded is encoded and decoded to the same, that limits hold, that what verifies is what
//! was signed, that two implementations agree.
//!
//! libFuzzer drives the targets from `libfuzzer/`; the tests of this crate replay the corpora and
//! some mutations of them. docs/fuzzing.md has the whole of it.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::missing_panics_doc,
    reason = "a panic is a finding"
)]

pub mod mutate;

mod cell;
mod ceremony;
mod channel;
mod config;
mod content;
mod directory;
mod endpoint;
mod enrolment;
#[cfg(test)]
mod fixtures;
mod handle;
mod hub;
mod input;
mod link;
mod log;
mod mailing;
mod map;
mod mls;
mod pki;
mod record;
mod rules;
mod word;
mod world;

/// One thing to fuzz.
#[derive(Clone, Copy)]
pub struct Target {
    /// Its name, and that of its corpus.
    pub name: &'static str,
    /// Takes an input; panics when something does not hold.
    pub run: fn(&[u8]),
    /// Valid values to begin with, the same each time.
    pub seeds: fn() -> Vec<Vec<u8>>,
}

/// All of them.
pub const TARGETS: &[Target] = &[
    word::IDENTIFIER,
    word::NAME,
    word::STATUS,
    link::FRAME,
    link::PARCEL,
    link::STATE,
    link::BACKOFF,
    hub::ORDER,
    cell::SEATS,
    cell::ITEM,
    mls::PRIVATE_MESSAGE,
    mls::WELCOME,
    mls::KEY_PACKAGE,
    directory::STATEMENT,
    directory::SIGNED_STATEMENT,
    directory::TOTALS,
    log::ENTRY,
    log::CHECKPOINT,
    log::PROOF,
    log::REPLAY,
    log::STATEMENTS,
    ceremony::TRANSCRIPT,
    ceremony::CONCLUSION,
    channel::CHANNEL,
    channel::MANIFEST,
    handle::EVALUATION,
    handle::ANSWER,
    record::RECORD,
    record::SEALED_PART,
    record::OPERATION,
    rules::RULES,
    map::MAP,
    map::PLACE,
    map::LOOKUP,
    enrolment::CLAIM,
    enrolment::RENEWAL,
    pki::CHAIN,
    pki::REQUEST,
    pki::REVOCATION,
    pki::ARMOUR,
    pki::BUNDLE,
    content::MIMI,
    content::BODY,
    content::LETTER,
    content::FILE,
    endpoint::CREDENTIAL,
    mailing::RECIPIENTS,
    mailing::TEMPLATE,
    config::FILES,
    config::DECISION,
];

/// The target of this name, found while compiling: whoever asks links no other.
///
/// # Panics
///
/// If there is none.
pub const fn target(name: &str) -> Target {
    let mut at = 0;
    while !same(TARGETS[at].name, name) {
        at += 1;
    }
    TARGETS[at]
}

const fn same(one: &str, other: &str) -> bool {
    let (one, other) = (one.as_bytes(), other.as_bytes());
    let mut at = 0;
    while at < one.len() && at < other.len() && one[at] == other[at] {
        at += 1;
    }
    at == one.len() && at == other.len()
}
