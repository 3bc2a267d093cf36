//! The result of a run: figures for people as a table, for machines as JSON.

use super::books::{Books, Fault};
use super::faults::Done;
use serde::Serialize;
use std::collections::BTreeMap;
use std::fmt::Write as _;

/// What a run came to.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Report {
    /// With it, the same things are drawn again.
    pub(super) seed: u64,
    /// How long things went wrong.
    pub(super) seconds: f64,
    /// How long the rest then took to arrive.
    pub(super) settled_seconds: f64,
    /// Processes killed.
    pub(super) kills: u64,
    /// Letters accepted from agents.
    pub(super) letters: u64,
    /// Answers accepted from residents.
    pub(super) answers: u64,
    /// Broadcasts of both agents, each to all residents.
    pub(super) broadcasts: u64,
    /// Letters that were refused for good, by reason.
    pub(super) refused: BTreeMap<String, u64>,
    pub(super) lost: u64,
    pub(super) duplicated: u64,
    pub(super) wrong_order: u64,
    pub(super) unfinished: u64,
    pub(super) altered: u64,
    pub(super) contradicted: u64,
    pub(super) alarms: u64,
    /// How often each fault was made.
    pub(super) faults: BTreeMap<&'static str, u64>,
    /// Kills by kind of party.
    pub(super) killed: BTreeMap<&'static str, u64>,
    /// Parties that ended without having been killed, and how often.
    pub(super) ended_by_themselves: BTreeMap<String, u64>,
    /// Parties that did not end well when they were told to.
    pub(super) ended_badly: Vec<String>,
    /// Some of what does not balance.
    pub(super) examples: BTreeMap<Fault, Vec<String>>,
}

impl Report {
    /// The figures of books, without those of time and parties.
    pub(super) fn new(seed: u64, books: Books, done: Done) -> Self {
        let count = |fault| books.count(fault);
        Self {
            seed,
            seconds: 0.0,
            settled_seconds: 0.0,
            kills: done.faults.get("kill").copied().unwrap_or(0),
            letters: 0,
            answers: books.answers,
            broadcasts: 0,
            refused: BTreeMap::new(),
            lost: count(Fault::Lost),
            duplicated: count(Fault::Duplicated),
            wrong_order: count(Fault::WrongOrder),
            unfinished: count(Fault::Unfinished),
            altered: count(Fault::Altered),
            contradicted: count(Fault::Contradicted),
            alarms: count(Fault::Alarmed),
            faults: done.faults,
            killed: done.killed,
            ended_by_themselves: BTreeMap::new(),
            ended_badly: Vec::new(),
            examples: books.examples,
        }
    }

    /// Whether the books balance, and nobody ended otherwise than by our hand.
    pub(super) fn is_good(&self) -> bool {
        self.examples.is_empty() && self.ended_by_themselves.is_empty() && self.ended_badly.is_empty()
    }

    /// For people.
    pub(super) fn table(&self) -> String {
        let mut text = String::new();
        let mut row = |name: &str, value: String| {
            let _ = writeln!(text, "  {name:<14} {value:>10}");
        };
        row("seed", self.seed.to_string());
        row("seconds", format!("{:.0}", self.seconds));
        row("to settle", format!("{:.0} s", self.settled_seconds));
        row("kills", self.kills.to_string());
        row("letters", self.letters.to_string());
        row("answers", self.answers.to_string());
        row("broadcasts", self.broadcasts.to_string());
        for (name, count) in [
            ("lost", self.lost),
            ("duplicated", self.duplicated),
            ("wrong order", self.wrong_order),
            ("unfinished", self.unfinished),
            ("altered", self.altered),
            ("contradicted", self.contradicted),
            ("alarms", self.alarms),
        ] {
            row(name, count.to_string());
        }
        for (reason, count) in &self.refused {
            let _ = writeln!(text, "  refused: {count} × {reason}");
        }
        let counts = |counts: &BTreeMap<&'static str, u64>| {
            counts.iter().map(|(name, count)| format!("{name} {count}")).collect::<Vec<_>>().join(", ")
        };
        let _ = writeln!(text, "  faults: {}", counts(&self.faults));
        let _ = writeln!(text, "  killed: {}", counts(&self.killed));
        for (party, count) in &self.ended_by_themselves {
            let _ = writeln!(text, "  {party} ended by itself, {count} ×");
        }
        for party in &self.ended_badly {
            let _ = writeln!(text, "  {party} did not end well when told to");
        }
        for example in self.examples.values().flatten() {
            let _ = writeln!(text, "  {example}");
        }
        text
    }
}
