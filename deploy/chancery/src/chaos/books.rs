//! The accounts: what senders were told against what recipients' stores hold. No I/O.

use super::account::{End, Received, Sent, Store, answer, digest};
use super::broadcasts::Broadcast;
use super::load::{Fate, Letter, Recipient};
use super::stores::Stores;
use serde::Serialize;
use std::collections::{BTreeMap, HashMap};

/// Most examples of each fault that are named.
const EXAMPLES: usize = 10;

/// What can be wrong with a letter or an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Fault {
    /// It was accepted and does not stand in the recipient's inbox.
    Lost,
    /// It stands there more than once, or has more than one terminal event.
    Duplicated,
    /// It stands before one that was accepted earlier in its thread.
    WrongOrder,
    /// Its request has no answer, it has no terminal event, its answer is still to come, or an
    /// attachment cannot be fetched.
    Unfinished,
    /// It is something else than was sent.
    Altered,
    /// One side says what the other one denies.
    Contradicted,
    /// An endpoint raised an alarm: nobody here is hostile.
    Alarmed,
}

impl Fault {
    const fn title(self) -> &'static str {
        match self {
            Self::Lost => "lost",
            Self::Duplicated => "duplicated",
            Self::WrongOrder => "in wrong order",
            Self::Unfinished => "unfinished",
            Self::Altered => "altered",
            Self::Contradicted => "contradicted",
            Self::Alarmed => "alarms",
        }
    }
}

/// What does not balance.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Books {
    counts: BTreeMap<Fault, u64>,
    /// Some of each, by number of the letter.
    pub(super) examples: BTreeMap<Fault, Vec<String>>,
    /// Answers that were accepted.
    pub(super) answers: u64,
    /// Letters and answers that have their terminal event.
    pub(super) ended: u64,
}

impl Books {
    /// How often a fault was found.
    pub(super) fn count(&self, fault: Fault) -> u64 {
        self.counts.get(&fault).copied().unwrap_or(0)
    }

    /// Whether there is nothing to complain about.
    pub(super) fn balance(&self) -> bool {
        self.counts.is_empty()
    }

    /// What is wrong, in a line.
    pub(super) fn summary(&self) -> String {
        let all = self.counts.iter().map(|(fault, count)| format!("{count} {}", fault.title()));
        all.collect::<Vec<_>>().join(", ")
    }

    fn add(&mut self, fault: Fault, example: String) {
        *self.counts.entry(fault).or_default() += 1;
        let examples = self.examples.entry(fault).or_default();
        if examples.len() < EXAMPLES {
            examples.push(example);
        }
    }

    /// Does the accounts.
    pub(super) fn of(letters: &[Letter], broadcasts: &[Broadcast], stores: &Stores) -> Self {
        let mut books = Self::default();
        let nothing = Store::default();
        let inboxes = Inboxes::read(stores);
        let senders: Vec<_> = stores.agents.iter().map(by_message).collect();
        // Answers by message, with their letter's number and when they were accepted.
        let mut answers = HashMap::new();
        for (number, letter) in letters.iter().enumerate() {
            let found = inboxes.find(letter.to, &letter.digest);
            let name = format!("letter {number}");
            match &letter.fate {
                Fate::Open => books.add(Fault::Unfinished, format!("{name}: the request has no answer")),
                Fate::Refused(reason) if !found.is_empty() => {
                    books.add(Fault::Contradicted, format!("{name}: refused ({reason}) and there"));
                }
                Fate::Refused(_) => {}
                Fate::Accepted { message, thread, .. } => {
                    books.check(&name, &found, |found| {
                        found.message == *message
                            && found.thread == *thread
                            && found.files.as_ref().is_none_or(|files| *files == letter.files)
                    });
                    books.end(&name, senders.get(letter.from).and_then(|sent| sent.get(&**message)).copied());
                    if letter.asks && !found.is_empty() {
                        let store = match letter.to {
                            Recipient::Resident(number) => stores.residents.get(&number).unwrap_or(&nothing),
                            Recipient::Agent(number) => stores.agents.get(number).unwrap_or(&nothing),
                        };
                        if let Some(sent) = books.answer(number, message, store) {
                            answers.insert(
                                (letter.from, sent.message.clone()),
                                (number, message, sent.accepted_at),
                            );
                        }
                    }
                }
            }
        }
        for (&(from, ref message), (number, answered, _)) in &answers {
            let found = inboxes.find_message(from, message);
            let text = digest(answer(answered).as_bytes());
            books.check(&format!("the answer to letter {number}"), &found, |found| {
                found.digest == text && found.answers.as_ref() == Some(answered)
            });
        }
        books.order(letters, stores, &answers);
        books.strangers(letters, stores, &answers);
        books.bulletins(broadcasts, stores);
        let alarms = stores
            .residents
            .values()
            .flat_map(|store| store.alarms.iter().map(|alarm| (store.number, alarm)));
        for (number, alarm) in alarms {
            books.add(Fault::Alarmed, format!("resident {number}: {alarm}"));
        }
        books
    }

    /// Something that was accepted must stand once, as it was sent.
    fn check(&mut self, name: &str, found: &[&Received], intact: impl Fn(&Received) -> bool) {
        let [first, more @ ..] = found else {
            return self.add(Fault::Lost, format!("{name}: accepted and not there"));
        };
        if !more.is_empty() {
            self.add(Fault::Duplicated, format!("{name}: there {} times", found.len()));
        }
        if !intact(first) {
            self.add(Fault::Altered, format!("{name}: not what was sent"));
        }
        if first.files.is_none() {
            self.add(Fault::Unfinished, format!("{name}: an attachment cannot be fetched"));
        }
    }

    /// Something that was accepted must have been delivered, in one terminal event.
    fn end(&mut self, name: &str, sent: Option<&Sent>) {
        match sent.map(|sent| sent.ends.as_slice()).unwrap_or_default() {
            [] => self.add(Fault::Unfinished, format!("{name}: no terminal event")),
            [End::Delivered] => self.ended += 1,
            [other] => self.add(Fault::Contradicted, format!("{name}: accepted, and its end is {other:?}")),
            more => self.add(Fault::Duplicated, format!("{name}: {} terminal events", more.len())),
        }
    }

    /// The answer that a letter asked for, once it was accepted.
    fn answer<'s>(&mut self, number: usize, message: &str, store: &'s Store) -> Option<&'s Sent> {
        let name = format!("the answer to letter {number}");
        // The answer's request has the letter's id.
        let sent = store.sent.iter().find(|sent| sent.request == message);
        if sent.is_none_or(|sent| sent.accepted_at.is_none()) {
            self.add(Fault::Unfinished, format!("{name}: not accepted"));
            return None;
        }
        self.answers += 1;
        self.end(&name, sent);
        sent
    }

    /// Letters of a thread stand as they were accepted: those of a later round behind
    /// those of an earlier one, and within a round by the hub's time where it differs.
    fn order(&mut self, letters: &[Letter], stores: &Stores, answers: &Answers<'_>) {
        let numbers: HashMap<&str, usize> =
            letters.iter().enumerate().map(|(number, letter)| (&*letter.digest, number)).collect();
        let agents = stores.agents.iter().enumerate().map(|(number, store)| (Some(number), store));
        for (agent, store) in agents.chain(stores.residents.values().map(|store| (None, store))) {
            let mut last: HashMap<&str, (u64, i64)> = HashMap::new();
            for received in &store.letters {
                let answer = agent.and_then(|agent| answers.get(&(agent, received.message.clone())));
                let key =
                    match (answer, numbers.get(&*received.digest).and_then(|number| letters.get(*number))) {
                        (Some((_, _, Some(at))), _) => (u64::MAX, *at),
                        (_, Some(Letter { round, fate: Fate::Accepted { at, .. }, .. })) => (*round, *at),
                        _ => continue,
                    };
                let before = last.entry(&received.thread).or_insert(key);
                if key < *before {
                    let name = match (answer, numbers.get(&*received.digest)) {
                        (Some((number, ..)), _) => format!("the answer to letter {number}"),
                        (None, number) => format!("letter {}", number.copied().unwrap_or_default()),
                    };
                    self.add(Fault::WrongOrder, format!("{name}: behind a later one"));
                }
                *before = key;
            }
        }
    }

    /// Each broadcast stands once at each resident, as it was sent, and nothing else.
    fn bulletins(&mut self, broadcasts: &[Broadcast], stores: &Stores) {
        for (number, broadcast) in broadcasts.iter().enumerate() {
            if broadcast.sequence.is_none() {
                self.add(Fault::Unfinished, format!("broadcast {number}: the request has no answer"));
            }
        }
        for (resident, store) in &stores.residents {
            let mut heard: HashMap<(usize, u64), Vec<&str>> = HashMap::new();
            for broadcast in &store.broadcasts {
                let place = (broadcast.from, broadcast.sequence);
                heard.entry(place).or_default().push(&broadcast.digest);
            }
            for (number, broadcast) in broadcasts.iter().enumerate() {
                let Some(sequence) = broadcast.sequence else { continue };
                let name = format!("broadcast {number} at resident {resident}");
                match heard.remove(&(broadcast.from, sequence)).as_deref() {
                    None => self.add(Fault::Lost, name),
                    Some([digest]) if *digest == broadcast.digest => {}
                    Some([_]) => self.add(Fault::Altered, name),
                    Some(_) => self.add(Fault::Duplicated, name),
                }
            }
            let open = broadcasts.iter().any(|broadcast| broadcast.sequence.is_none());
            if !open && !heard.is_empty() {
                self.add(Fault::Contradicted, format!("resident {resident} has what nobody broadcast"));
            }
        }
    }

    /// Whatever stands in an inbox was sent there.
    fn strangers(&mut self, letters: &[Letter], stores: &Stores, answers: &Answers<'_>) {
        let sent: std::collections::HashSet<(Recipient, &str)> =
            letters.iter().map(|letter| (letter.to, &*letter.digest)).collect();
        for (number, store) in stores.agents.iter().enumerate() {
            for received in &store.letters {
                let answer = answers.contains_key(&(number, received.message.clone()));
                if !answer && !sent.contains(&(Recipient::Agent(number), &received.digest)) {
                    self.add(Fault::Contradicted, format!("agent {number} has what nobody sent"));
                }
            }
        }
        for (number, store) in &stores.residents {
            for received in &store.letters {
                if !sent.contains(&(Recipient::Resident(*number), &received.digest)) {
                    self.add(Fault::Contradicted, format!("resident {number} has what nobody sent"));
                }
            }
        }
    }
}

/// By whom it went to and its message: number of the letter, its message, when it was accepted.
type Answers<'a> = HashMap<(usize, String), (usize, &'a String, Option<i64>)>;

fn by_message(store: &Store) -> HashMap<&str, &Sent> {
    store.sent.iter().map(|sent| (&*sent.message, sent)).collect()
}

/// What came in, by whom it is with and what it says.
struct Inboxes<'s> {
    by_digest: HashMap<(Recipient, &'s str), Vec<&'s Received>>,
    by_message: HashMap<(usize, &'s str), Vec<&'s Received>>,
}

impl<'s> Inboxes<'s> {
    fn read(stores: &'s Stores) -> Self {
        let mut inboxes = Self { by_digest: HashMap::new(), by_message: HashMap::new() };
        let agents = stores.agents.iter().enumerate().map(|(n, store)| (Recipient::Agent(n), store));
        let residents = stores.residents.iter().map(|(n, store)| (Recipient::Resident(*n), store));
        for (whose, store) in agents.chain(residents) {
            for received in &store.letters {
                inboxes.by_digest.entry((whose, &received.digest)).or_default().push(received);
                if let Recipient::Agent(number) = whose {
                    inboxes.by_message.entry((number, &received.message)).or_default().push(received);
                }
            }
        }
        inboxes
    }

    fn find(&self, whose: Recipient, digest: &str) -> Vec<&'s Received> {
        self.by_digest.get(&(whose, digest)).cloned().unwrap_or_default()
    }

    fn find_message(&self, agent: usize, message: &str) -> Vec<&'s Received> {
        self.by_message.get(&(agent, message)).cloned().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chaos::account::Heard;

    /// A letter to resident 0, accepted as message `m<number>` at `at`.
    fn letter(number: usize, round: u64, at: i64) -> Letter {
        Letter {
            from: 0,
            to: Recipient::Resident(0),
            round,
            digest: format!("d{number}"),
            files: Vec::new(),
            asks: false,
            fate: Fate::Accepted { message: format!("m{number}"), thread: "t".to_owned(), at },
        }
    }

    fn received(number: usize) -> Received {
        Received {
            message: format!("m{number}"),
            thread: "t".to_owned(),
            answers: None,
            digest: format!("d{number}"),
            files: Some(Vec::new()),
        }
    }

    fn delivered(number: usize) -> Sent {
        let (message, ends) = (format!("m{number}"), vec![End::Delivered]);
        Sent { request: format!("r{number}"), message, accepted_at: Some(1), ends }
    }

    fn stores(received: Vec<Received>, sent: Vec<Sent>) -> Stores {
        let resident = Store { letters: received, ..Store::default() };
        let agent = Store { sent, ..Store::default() };
        Stores { agents: vec![agent], residents: BTreeMap::from([(0, resident)]), complete: true }
    }

    #[track_caller]
    fn has(letters: &[Letter], stores: &Stores, faults: &[(Fault, u64)]) {
        assert_eq!(Books::of(letters, &[], stores).counts, faults.iter().copied().collect());
    }

    #[test]
    fn what_arrived_once_and_in_order_balances() {
        let letters = [letter(0, 0, 5), letter(1, 1, 5), letter(2, 1, 7)];
        let all = stores((0..3).map(received).collect(), (0..3).map(delivered).collect());
        let books = Books::of(&letters, &[], &all);
        assert!(books.balance() && books.ended == 3, "{books:?}");
    }

    #[test]
    fn each_fault_is_told() {
        let letters = [letter(0, 0, 5), letter(1, 0, 7)];
        let both = || (0..2).map(delivered).collect::<Vec<_>>();
        has(&letters, &stores(vec![received(0)], both()), &[(Fault::Lost, 1)]);
        let twice = vec![received(0), received(1), received(1)];
        has(&letters, &stores(twice, both()), &[(Fault::Duplicated, 1)]);
        has(&letters, &stores(vec![received(1), received(0)], both()), &[(Fault::WrongOrder, 1)]);
        let arrived = || (0..2).map(received).collect::<Vec<_>>();
        has(&letters, &stores(arrived(), vec![delivered(0)]), &[(Fault::Unfinished, 1)]);
        let failed = Sent { ends: vec![End::Failed], ..delivered(1) };
        has(&letters, &stores(arrived(), vec![delivered(0), failed]), &[(Fault::Contradicted, 1)]);
        let ended_twice = Sent { ends: vec![End::Delivered; 2], ..delivered(1) };
        has(&letters, &stores(arrived(), vec![delivered(0), ended_twice]), &[(Fault::Duplicated, 1)]);
        let other = Received { message: "another".to_owned(), ..received(1) };
        has(&letters, &stores(vec![received(0), other], both()), &[(Fault::Altered, 1)]);
        let unfetched = Received { files: None, ..received(1) };
        has(&letters, &stores(vec![received(0), unfetched], both()), &[(Fault::Unfinished, 1)]);
        let stranger = [arrived(), vec![received(9)]].concat();
        has(&letters, &stores(stranger, both()), &[(Fault::Contradicted, 1)]);
        let mut alarmed = stores(arrived(), both());
        alarmed.residents.get_mut(&0).unwrap().alarms.push("forked".to_owned());
        has(&letters, &alarmed, &[(Fault::Alarmed, 1)]);
    }

    #[test]
    fn requests_without_answer_and_refused_letters_that_stand_are_told() {
        let open = Letter { fate: Fate::Open, ..letter(0, 0, 0) };
        has(&[open], &stores(vec![received(0)], Vec::new()), &[(Fault::Unfinished, 1)]);
        let refused = Letter { fate: Fate::Refused("EXPIRED".to_owned()), ..letter(0, 0, 0) };
        has(std::slice::from_ref(&refused), &stores(Vec::new(), Vec::new()), &[]);
        has(&[refused], &stores(vec![received(0)], Vec::new()), &[(Fault::Contradicted, 1)]);
    }

    #[test]
    fn answers_come_once_and_say_what_they_answer() {
        let letters = [Letter { asks: true, ..letter(0, 0, 5) }];
        let mut all = stores(vec![received(0)], vec![delivered(0)]);
        has(&letters, &all, &[(Fault::Unfinished, 1)]);
        let resident = all.residents.get_mut(&0).unwrap();
        resident.sent.push(Sent { request: "m0".to_owned(), ..delivered(1) });
        has(&letters, &all, &[(Fault::Lost, 1)]);
        let text = digest(answer("m0").as_bytes());
        let arrived = Received { answers: Some("m0".to_owned()), digest: text, ..received(1) };
        all.agents[0].letters.push(arrived.clone());
        let books = Books::of(&letters, &[], &all);
        assert!(books.balance() && books.answers == 1, "{books:?}");
        all.agents[0].letters.push(arrived);
        has(&letters, &all, &[(Fault::Duplicated, 1)]);
    }

    #[test]
    fn each_broadcast_stands_once_at_each_resident() {
        let broadcast = |sequence| Broadcast { from: 1, digest: "d".to_owned(), sequence };
        let heard = |sequence, digest: &str| Heard { from: 1, sequence, digest: digest.to_owned() };
        let faults = |broadcasts: &[Broadcast], heard: Vec<Heard>| {
            let resident = Store { broadcasts: heard, ..Store::default() };
            let residents = BTreeMap::from([(0, resident)]);
            let stores = Stores { residents, complete: true, ..Stores::default() };
            Books::of(&[], broadcasts, &stores).counts.into_keys().collect::<Vec<_>>()
        };
        let sent = [broadcast(Some(1))];
        assert_eq!(faults(&sent, vec![heard(1, "d")]), []);
        assert_eq!(faults(&sent, Vec::new()), [Fault::Lost]);
        assert_eq!(faults(&sent, vec![heard(1, "d"), heard(1, "d")]), [Fault::Duplicated]);
        assert_eq!(faults(&sent, vec![heard(1, "e")]), [Fault::Altered]);
        assert_eq!(faults(&sent, vec![heard(1, "d"), heard(2, "d")]), [Fault::Contradicted]);
        assert_eq!(faults(&[broadcast(None)], vec![heard(1, "d")]), [Fault::Unfinished]);
    }
}
