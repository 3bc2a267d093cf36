//! For whom a broadcast is. Each device judges by what it knows of its owner, and tells nobody: not
//! even the agent learns who that was.

use super::{ComposeError, OverLimit};
use chancery_types::Timestamp;

pub use chancery_proto::content::v1::{Condition, Profile};

/// Most areas, and most topics.
const MOST: usize = 64;
/// Longest area in bytes.
const AREA: usize = 16;
/// Longest topic in bytes.
const TOPIC: usize = 32;
/// Highest age.
const AGE: u32 = 150;

/// Whether a condition may be written.
///
/// # Errors
/// What is wrong with it.
pub fn check(condition: &Condition) -> Result<(), ComposeError> {
    let fits = |words: &[String], longest: usize| {
        let is_word = |word: &String| (1..=longest).contains(&word.len()) && word.bytes().all(is_code);
        words.len() <= MOST && words.iter().all(is_word)
    };
    if !fits(&condition.areas, AREA) {
        return Err(OverLimit("areas").into());
    }
    if !fits(&condition.topics, TOPIC) {
        return Err(OverLimit("topics").into());
    }
    let last = if condition.max_age == 0 { AGE } else { condition.max_age };
    if last > AGE || condition.min_age > last {
        return Err(OverLimit("ages").into());
    }
    Ok(())
}

const fn is_code(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'-'
}

/// Whether what is under a condition is for the person of a profile. What the profile does not say
/// excludes nobody: who might be meant is told.
pub fn applies(condition: &Condition, profile: &Profile, now: Timestamp) -> bool {
    let lives_in = |area: &String| profile.areas.iter().any(|own| own.starts_with(area.as_str()));
    let wants = |topic: &String| profile.topics.contains(topic);
    let in_area =
        condition.areas.is_empty() || profile.areas.is_empty() || condition.areas.iter().any(lives_in);
    let on_topic =
        condition.topics.is_empty() || profile.topics.is_empty() || condition.topics.iter().any(wants);
    let of_age = now
        .full_years_since(&profile.birth_date)
        .is_none_or(|age| age >= condition.min_age && (condition.max_age == 0 || age <= condition.max_age));
    in_area && on_topic && of_age
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Midnight that began 2026-11-30.
    const NOW: Timestamp = Timestamp::from_millis(1_795_996_800_000);

    fn words(words: &[&str]) -> Vec<String> {
        words.iter().map(|word| (*word).to_owned()).collect()
    }

    fn person() -> Profile {
        Profile { areas: words(&["BE211"]), birth_date: "1960-12-01".to_owned(), topics: words(&["health"]) }
    }

    #[test]
    fn each_part_must_hold() {
        let meant = |areas: &[&str], (min_age, max_age), topics: &[&str]| {
            let condition = Condition { areas: words(areas), min_age, max_age, topics: words(topics) };
            check(&condition).unwrap();
            applies(&condition, &person(), NOW)
        };
        assert!(meant(&[], (0, 0), &[]));
        assert!(meant(&["FR", "BE2"], (65, 65), &["tax", "health"]), "the birthday is tomorrow");
        assert!(!meant(&["BE2111"], (0, 0), &[]), "a part of the area");
        assert!(!meant(&["FR"], (0, 0), &[]));
        assert!(!meant(&[], (66, 0), &[]));
        assert!(!meant(&[], (0, 64), &[]));
        assert!(!meant(&[], (0, 0), &["tax"]));
    }

    #[test]
    fn who_might_be_meant_is_told() {
        let condition =
            Condition { areas: words(&["BE"]), min_age: 65, max_age: 70, topics: words(&["health"]) };
        assert!(applies(&condition, &Profile::default(), NOW));
        let odd = Profile { birth_date: "yesterday".to_owned(), ..Profile::default() };
        assert!(applies(&condition, &odd, NOW));
    }

    #[test]
    fn what_may_not_be_written_is_refused() {
        let wrong = [
            Condition { areas: words(&[""]), ..Condition::default() },
            Condition { areas: words(&["BE 2"]), ..Condition::default() },
            Condition { areas: vec!["BE".to_owned(); 65], ..Condition::default() },
            Condition { topics: vec!["x".repeat(33)], ..Condition::default() },
            Condition { min_age: 151, ..Condition::default() },
            Condition { min_age: 20, max_age: 19, ..Condition::default() },
            Condition { max_age: 151, ..Condition::default() },
        ];
        assert!(wrong.iter().all(|condition| check(condition).is_err()));
    }
}
