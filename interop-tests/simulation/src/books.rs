//! What must hold whatever happens, counted while it happens.

use crate::mls::Member;
use chancery_proto::federation::v1::delivery;
use chancery_proto::node::v1::{Event, event, subscribe_response};
use chancery_sdk_core::{Alarm, Conclusion};
use chancery_types::{Alias, DeviceId, GroupId, MessageId, Timestamp};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

/// Something that must never happen has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Violation {
    /// A letter that the hub accepted, and that has not expired, is not at a device.
    Lost(u64),
    /// A letter had its effect at a device twice.
    Doubled(u64),
    /// Two letters of one device came in another order than they were written.
    Disordered(u64),
    /// A letter's sender was told that it failed, and it arrived.
    FailedAndArrived(u64),
    /// A letter failed without a reason that the run gives.
    Failed(u64, String),
    /// A letter has more than one terminal outcome, or a false one.
    Outcomes(u64, Vec<String>),
    /// The hub has not decided about a letter, or its end is not known.
    Unfinished(u64),
    /// A device raised an alarm though nobody lied.
    FalseAlarm(Alarm),
    /// A device encrypted twice under one key and nonce.
    KeyReused,
    /// A device was given what had expired.
    ExpiredServed,
    /// A device encrypted anew what was refused, in an epoch that was over by then.
    StaleAgain,
    /// Something waits for ever.
    Leftover(String),
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self:?}")
    }
}

/// A letter from writing to its end.
struct Letter {
    sender: DeviceId,
    recipient: Alias,
    expires: Timestamp,
    message_id: MessageId,
    /// Devices in the group when it was last encrypted, but for its sender.
    audience: Vec<Member>,
    concluded: Option<Result<Timestamp, String>>,
    arrived: BTreeSet<DeviceId>,
    terminal: Vec<&'static str>,
}

/// All letters of a run.
#[derive(Default)]
pub(crate) struct Books {
    letters: Vec<Letter>,
    by_message: BTreeMap<MessageId, u64>,
    /// Number of the last letter, by group, sender and reader.
    order: BTreeMap<(GroupId, DeviceId, DeviceId), u64>,
    sealed: BTreeSet<(GroupId, u64, DeviceId, u32)>,
    /// What was found.
    pub(crate) violations: Vec<Violation>,
    /// What happened, line by line, where it is wanted.
    pub(crate) trace: Option<Vec<String>>,
}

impl Books {
    /// Notes what happens, where that is wanted.
    pub(crate) fn log(&mut self, line: impl FnOnce() -> String) {
        if let Some(trace) = &mut self.trace {
            trace.push(line());
        }
    }

    /// A letter is written; its number.
    pub(crate) fn written(
        &mut self,
        sender: DeviceId,
        recipient: Alias,
        message_id: MessageId,
        expires: Timestamp,
    ) -> u64 {
        let number = self.letters.len() as u64;
        self.by_message.insert(message_id, number);
        self.letters.push(Letter {
            sender,
            recipient,
            expires,
            message_id,
            audience: Vec::new(),
            concluded: None,
            arrived: BTreeSet::new(),
            terminal: Vec::new(),
        });
        number
    }

    /// How many letters there are.
    pub(crate) fn len(&self) -> usize {
        self.letters.len()
    }

    /// How many letters arrived at some device.
    pub(crate) fn arrivals(&self) -> usize {
        self.letters.iter().filter(|letter| !letter.arrived.is_empty()).count()
    }

    /// A key and nonce were used.
    pub(crate) fn sealed(&mut self, group: &GroupId, epoch: u64, device: DeviceId, generation: u32) {
        if !self.sealed.insert((*group, epoch, device, generation)) {
            self.violations.push(Violation::KeyReused);
        }
    }

    /// A letter was encrypted for these.
    pub(crate) fn addressed(&mut self, number: u64, members: &[Member], own: DeviceId) {
        if let Some(letter) = self.letter(number) {
            letter.audience = members.iter().copied().filter(|member| member.device != own).collect();
        }
    }

    /// The sender knows what the hub decided.
    pub(crate) fn concluded(&mut self, number: u64, conclusion: Conclusion<'_>) {
        let Some(letter) = self.letter(number) else { return };
        letter.concluded = match conclusion {
            Conclusion::Accepted(at) => Some(Ok(at)),
            Conclusion::Failed(reason) => Some(Err(reason.to_owned())),
            Conclusion::Needless => None,
        };
    }

    /// A letter goes out under another id.
    pub(crate) fn renamed(&mut self, before: &MessageId, now: MessageId) {
        if let Some(number) = self.by_message.remove(before) {
            self.by_message.insert(now, number);
        }
    }

    /// A letter had its effect at a device; `new`: for the first time there.
    pub(crate) fn arrived(&mut self, (number, group): (u64, GroupId), device: DeviceId, new: bool) {
        let Some(letter) = self.letter(number) else { return };
        letter.arrived.insert(device);
        let key = (group, letter.sender, device);
        if !new {
            self.violations.push(Violation::Doubled(number));
        }
        let last = self.order.insert(key, number);
        if last.is_some_and(|last| last >= number) {
            self.violations.push(Violation::Disordered(number));
        }
    }

    /// A device read an event, which counts where the letter was sent.
    pub(crate) fn event(&mut self, device: DeviceId, event: &Event) {
        let kind = match &event.kind {
            Some(event::Kind::Delivered(_)) => "delivered",
            Some(event::Kind::Refused(_)) => "refused",
            Some(event::Kind::Expired(_)) => "expired",
            _ => return,
        };
        let number =
            MessageId::try_from(&event.message_id).ok().and_then(|id| self.by_message.get(&id).copied());
        let Some(letter) = number.and_then(|number| self.letter(number)) else { return };
        if letter.sender == device && event.recipient == letter.recipient.as_bytes().as_slice() {
            letter.terminal.push(kind);
        }
    }

    /// A node gives a device something at `now`, by its clock.
    pub(crate) fn served(&mut self, item: &subscribe_response::Item, now: Timestamp) {
        let subscribe_response::Item::Delivery(delivery) = item else { return };
        let is_message = !matches!(delivery.body, Some(delivery::Body::Expired(_)));
        if is_message && delivery.expires_at_ms <= now.millis() {
            self.violations.push(Violation::ExpiredServed);
        }
    }

    /// Something was encrypted in `epoch` that the hub takes from `needed` on.
    pub(crate) fn made_anew(&mut self, epoch: u64, needed: u64) {
        if epoch < needed {
            self.violations.push(Violation::StaleAgain);
        }
    }

    /// A device raised an alarm.
    pub(crate) fn alarmed(&mut self, alarm: Alarm, device: DeviceId) {
        self.log(|| format!("device {} raises {alarm:?}", short(device.as_bytes())));
        self.violations.push(Violation::FalseAlarm(alarm));
    }

    /// Whether every letter has come to its end.
    pub(crate) fn is_settled(&self) -> bool {
        self.letters.iter().all(|letter| match &letter.concluded {
            None => false,
            Some(Ok(_)) => !letter.terminal.is_empty(),
            Some(Err(_)) => true,
        })
    }

    /// The last look, when nothing moves any more at `now`.
    pub(crate) fn close(&mut self, now: Timestamp) {
        for number in 0..self.letters.len() as u64 {
            let Some(letter) = self.letter(number) else { continue };
            let found = letter.judge(number, now);
            self.violations.extend(found);
        }
    }

    fn letter(&mut self, number: u64) -> Option<&mut Letter> {
        self.letters.get_mut(usize::try_from(number).ok()?)
    }

    /// Says of a letter what is known, for somebody who looks for a fault.
    pub(crate) fn describe(&self, number: u64) -> String {
        let Some(letter) = usize::try_from(number).ok().and_then(|at| self.letters.get(at)) else {
            return String::new();
        };
        format!(
            "letter {number} ({}): concluded {:?}, arrived at {} of {}, told {:?}, expires {}",
            letter.message_id.to_text(),
            letter.concluded,
            letter.arrived.len(),
            letter.audience.len(),
            letter.terminal,
            letter.expires,
        )
    }
}

impl Letter {
    fn judge(&self, number: u64, now: Timestamp) -> Option<Violation> {
        // Clocks differ by five minutes at most.
        let may_expire = self.expires <= now.after(std::time::Duration::from_mins(10));
        match &self.concluded {
            None => Some(Violation::Unfinished(number)),
            Some(Err(_)) if !self.arrived.is_empty() => Some(Violation::FailedAndArrived(number)),
            Some(Err(reason)) if reason == "EXPIRED" && may_expire => None,
            Some(Err(reason)) => Some(Violation::Failed(number, reason.clone())),
            Some(Ok(_)) => self.judge_accepted(number, may_expire),
        }
    }

    fn judge_accepted(&self, number: u64, may_expire: bool) -> Option<Violation> {
        let read =
            self.audience.iter().any(|m| m.alias == self.recipient && self.arrived.contains(&m.device));
        match *self.terminal {
            [] => Some(Violation::Unfinished(number)),
            ["delivered"] if !read => Some(Violation::Outcomes(number, vec!["delivered to nobody".into()])),
            ["delivered"] if may_expire || self.audience.iter().all(|m| self.arrived.contains(&m.device)) => {
                None
            }
            ["expired"] if may_expire => None,
            ["delivered"] => Some(Violation::Lost(number)),
            _ => Some(Violation::Outcomes(number, self.terminal.iter().map(|&kind| kind.into()).collect())),
        }
    }
}

/// The part of an id that tells it from others of its run.
pub(crate) fn short(id: &[u8]) -> u64 {
    id.first_chunk::<8>().map_or(0, |first| u64::from_be_bytes(*first))
}
