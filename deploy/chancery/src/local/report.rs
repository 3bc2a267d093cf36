//! The result of a run: figures for people as a table, for machines as JSON.

use super::visibility::{Secret, Seen};
use serde::Serialize;
use std::collections::BTreeMap;
use std::fmt::Write as _;

/// What became of the letters of a run.
#[derive(Clone, Debug, Default, Serialize)]
pub(crate) struct Figures {
    /// Accepted by the hub.
    pub(crate) accepted: u64,
    /// Committed by the recipient's node.
    pub(crate) relayed: u64,
    /// Taken by a device, which verified and opened them, attachments included.
    pub(crate) delivered: u64,
    /// Reported as read.
    pub(crate) read: u64,
    /// Answered.
    pub(crate) answered: u64,
    /// Not sent or not delivered.
    pub(crate) failed: u64,
    /// Found more than once on a device.
    pub(crate) duplicates: u64,
    /// Letters per second, from the first Send to the last delivery.
    pub(crate) letters_per_s: f64,
    /// Median of the time from Send to delivery, in milliseconds.
    pub p50_ms: f64,
    /// 99th percentile of the same.
    pub p99_ms: f64,
    /// What was broadcast after the letters.
    pub(crate) broadcasts: Broadcasts,
}

/// What became of the broadcasts of a run.
#[derive(Clone, Debug, Default, Serialize)]
pub(crate) struct Broadcasts {
    /// How many there were.
    pub(crate) sent: u64,
    /// For how many cells one was wrapped at most.
    pub(crate) cells: u32,
    /// How often one was read, by as many residents.
    pub(crate) read: u64,
    /// From the first one to the last that read it.
    pub(crate) seconds: f64,
}

/// A run with what was noticed.
#[derive(Clone, Debug, Default)]
pub(crate) struct Report {
    /// The figures.
    pub(crate) figures: Figures,
    /// Reasons of failures, counted.
    pub(crate) failures: BTreeMap<String, u64>,
    /// Rows of the list that were refused: line and reason.
    pub(crate) refused_rows: Vec<String>,
    /// Letters that arrived other than they were sent.
    pub(crate) altered: u64,
    /// What each party's disk holds.
    pub(crate) seen: Vec<(&'static str, Seen)>,
}

impl Report {
    /// Whether every letter arrived intact and once.
    pub(crate) const fn is_good(&self) -> bool {
        let figures = &self.figures;
        figures.failed == 0
            && figures.duplicates == 0
            && self.altered == 0
            && figures.delivered == figures.accepted
    }

    /// For people.
    pub(crate) fn table(&self) -> String {
        let figures = &self.figures;
        let mut text = String::new();
        let mut row = |name: &str, value: String| {
            let _ = writeln!(text, "  {name:<14} {value:>10}");
        };
        row("accepted", figures.accepted.to_string());
        row("relayed", figures.relayed.to_string());
        row("delivered", figures.delivered.to_string());
        row("read", figures.read.to_string());
        row("answered", figures.answered.to_string());
        row("failed", figures.failed.to_string());
        row("duplicates", figures.duplicates.to_string());
        row("letters/s", format!("{:.1}", figures.letters_per_s));
        row("p50", format!("{:.0} ms", figures.p50_ms));
        row("p99", format!("{:.0} ms", figures.p99_ms));
        if figures.broadcasts.sent > 0 {
            let Broadcasts { sent, cells, read, seconds } = &figures.broadcasts;
            row("broadcasts", sent.to_string());
            row("cells", cells.to_string());
            row("read by", read.to_string());
            row("within", format!("{seconds:.1} s"));
        }
        for (reason, count) in &self.failures {
            let _ = writeln!(text, "  failed: {count} × {reason}");
        }
        if self.altered > 0 {
            let _ = writeln!(text, "  arrived other than sent: {}", self.altered);
        }
        for line in &self.refused_rows {
            let _ = writeln!(text, "  row refused: {line}");
        }
        self.visibility(&mut text);
        text
    }

    fn visibility(&self, text: &mut String) {
        if self.seen.is_empty() {
            return;
        }
        let _ =
            writeln!(text, "\nWhat each party's disk holds of the residents' secrets (every byte searched)");
        let _ = write!(text, "  {:<20}", "");
        for kind in Secret::ALL {
            let _ = write!(text, " {:>12}", kind.title());
        }
        let _ = writeln!(text, " {:>12}", "searched");
        for (party, seen) in &self.seen {
            let _ = write!(text, "  {party:<20}");
            for kind in Secret::ALL {
                let found = match seen.found.get(&kind) {
                    Some(count) => count.to_string(),
                    None => "none".to_owned(),
                };
                let _ = write!(text, " {found:>12}");
            }
            let _ = writeln!(text, " {:>8.1} MiB", seen.bytes as f64 / f64::from(1024 * 1024));
        }
        let _ = writeln!(
            text,
            "  The directory holds every handle by design; the authority knows those it attested, an agent those it\n  addressed, a device its own."
        );
    }
}

/// The `share` quantile (0 to 1) of some values; 0 when there are none.
pub(crate) fn quantile(values: &mut [f64], share: f64) -> f64 {
    values.sort_by(f64::total_cmp);
    let last = values.len().saturating_sub(1);
    let index = (last as f64 * share).round() as usize;
    values.get(index).copied().unwrap_or(0.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles() {
        let mut values: Vec<f64> = (0..=100).rev().map(f64::from).collect();
        assert_eq!((quantile(&mut values, 0.5), quantile(&mut values, 0.99)), (50.0, 99.0));
        assert_eq!(quantile(&mut [], 0.5), 0.0);
    }

    #[test]
    fn good_means_every_letter_once_and_intact() {
        let good = Report {
            figures: Figures { accepted: 2, delivered: 2, ..Default::default() },
            ..Default::default()
        };
        assert!(good.is_good());
        assert!(!Report { altered: 1, ..good.clone() }.is_good());
        let lost = Figures { accepted: 2, delivered: 1, ..Default::default() };
        assert!(!Report { figures: lost, ..good }.is_good());
    }
}
