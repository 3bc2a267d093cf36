//! Mailings: a list of recipients, a letter with merge fields, what is
//! attached, and invented lists to try them with. Sending is not done here.

pub mod assets;
pub mod recipients;
mod records;
pub mod synthetic;
pub mod template;

/// Lists of recipients.
#[derive(clap::Subcommand)]
pub enum RecipientsCommand {
    /// Make a list of invented recipients with valid identifiers.
    Make(synthetic::MakeArgs),
}

/// Whether `name` can name a column and stand in a letter: a letter a-z, then
/// letters, digits and underscores; at most 64 bytes.
fn is_field_name(name: &str) -> bool {
    name.len() <= 64
        && name.starts_with(|c: char| c.is_ascii_lowercase())
        && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_')
}

#[cfg(test)]
mod tests {
    use super::*;
    use chancery_types::Scheme;
    use std::collections::BTreeMap;

    const RECIPIENTS: &str = include_str!("../../../local/recipients.csv");
    const LETTER: &str = include_str!("../../../local/letter.md");

    #[test]
    fn the_sample_list_is_what_the_generator_writes() {
        let mut written = Vec::new();
        synthetic::write_csv(&mut written, 200, 1).unwrap();
        assert!(
            written == RECIPIENTS.as_bytes(),
            "run `chancery recipients make > deploy/local/recipients.csv`"
        );
    }

    #[test]
    fn the_sample_letter_merges_with_every_sample_recipient() {
        let template = template::Template::parse(LETTER).unwrap();
        let mut schemes = BTreeMap::<_, u32>::new();
        for recipient in recipients::read(RECIPIENTS.as_bytes()).unwrap() {
            let recipient = recipient.unwrap();
            let letter = template.render(&recipient.fields).unwrap();
            assert!(letter.contains(&recipient.fields["name"]) && !letter.contains("{{"));
            assert!(!letter.contains(recipient.identifier.value()), "the identifier is no merge field");
            *schemes.entry(recipient.identifier.scheme().as_str()).or_default() += 1;
        }
        assert!(schemes.values().sum::<u32>() >= 200);
        let expected = [Scheme::BeNn, Scheme::DeStid, Scheme::NoFnr].map(Scheme::as_str);
        assert!(expected.iter().all(|scheme| schemes[scheme] > 50), "{schemes:?}");
    }
}
