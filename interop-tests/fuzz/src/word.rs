//! Words that stand in messages, files and certificates: identifiers, names, ids, URLs; and
//! the reasons in a peer's refusals.

use crate::Target;
use crate::input::Steps;
use chancery_directory_core::attestation::SchemeName;
use chancery_kit::status::{from_status, to_status};
use chancery_pki_core::{Federation, LeafNames, Party, SpiffeId};
use chancery_sdk::attachment::BlobUrl;
use chancery_sdk::credential::AgentName;
use chancery_types::identifier::MAX_INPUT;
use chancery_types::{BlobId, Identifier, MessageId, NodeId, Reason, Refusal, Scheme};
use tonic::{Code, Status};

/// A scheme, then what a person typed.
pub(crate) const IDENTIFIER: Target = Target { name: "identifier", run: identifier, seeds: identifier_seeds };
/// Any text that should be a name.
pub(crate) const NAME: Target = Target { name: "name", run: name, seeds: name_seeds };
/// A code, then the details of a gRPC status.
pub(crate) const STATUS: Target = Target { name: "status", run: status, seeds: status_seeds };

fn identifier(bytes: &[u8]) {
    let Some((scheme, text)) = bytes.split_first() else { return };
    let scheme = Scheme::ALL[usize::from(*scheme) % Scheme::ALL.len()];
    let Ok(text) = std::str::from_utf8(text) else { return };
    let Ok(identifier) = Identifier::new(scheme, text) else { return };
    assert!(text.len() <= MAX_INPUT, "a text beyond the limit is an identifier");
    let value = identifier.value();
    assert!((7..=15).contains(&value.len()) && value.bytes().all(|b| b.is_ascii_digit()));
    // Whatever is typed, one value: else one person had two handles.
    let again = Identifier::parse(scheme.as_str(), value).unwrap();
    assert!(again == identifier && again.value() == value, "a value is not its own normal form");
    let spaced: String = value.chars().flat_map(|c| [' ', c]).collect();
    assert!(Identifier::new(scheme, &spaced) == Ok(identifier), "separators change a value");
}

fn identifier_seeds() -> Vec<Vec<u8>> {
    let samples = [
        (0, "85.07.30-033 28"),
        (0, "85073003328"),
        (0, "89471280394"),
        (1, "BE 0202.239.951"),
        (1, "0403.019.261"),
        (2, "65929970489"),
        (3, "01010750160"),
        (3, "41010112378"),
        (4, "+32 2 123 45 67"),
        (4, "0032471234567"),
    ];
    samples.map(|(scheme, text)| [&[scheme], text.as_bytes()].concat()).to_vec()
}

fn name(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    if let Ok(id) = text.parse::<NodeId>() {
        assert!(id.as_str() == text && text.len() <= 63);
    }
    if let Ok(id) = text.parse::<SpiffeId>() {
        assert!(id.to_string() == text, "a SPIFFE id has two forms");
        assert!(id.federation().as_str().parse::<Federation>().is_ok());
        if let Ok(party) = id.party() {
            assert!(SpiffeId::of(id.federation(), &party) == id);
        }
    }
    if let Ok(party) = text.parse::<Party>() {
        assert!(party.to_string() == text, "a party has two paths");
    }
    // Two readers of an agent's id: that of certificates, that of device credentials.
    let agent = text.parse::<SpiffeId>().ok().and_then(|id| match id.party() {
        Ok(Party::Agent { administration, name }) => {
            Some((id.federation().to_string(), administration, name))
        }
        _ => None,
    });
    let presented = AgentName::parse(text);
    assert!(presented.as_ref().is_none_or(|presented| presented.spiffe_id() == text));
    let presented = presented.map(|agent| (agent.federation, agent.administration, agent.name));
    assert!(presented == agent, "an agent's id is read in two ways");
    if let Ok(url) = text.parse::<BlobUrl>() {
        assert!(url.to_string() == text, "a blob has two URLs");
    }
    if let Ok(scheme) = text.parse::<SchemeName>() {
        assert!(scheme.as_str() == text);
    }
    if let Some(id) = MessageId::from_text(text) {
        assert!(MessageId::from_text(&id.to_text()) == Some(id));
    }
    if let Some(reason) = Reason::from_wire(text) {
        assert!(reason.as_str() == text);
    }
    if let Ok(names) = LeafNames::parse(&text.split(' ').collect::<Vec<_>>()) {
        let again = LeafNames::parse(&names.to_strings());
        assert!(again.is_ok_and(|again| again == names), "names of a certificate have two forms");
    }
}

fn name_seeds() -> Vec<Vec<u8>> {
    let blob = BlobUrl { origin: "federal".parse().unwrap(), id: BlobId::from_bytes([0xab; 32]) };
    [
        "federal",
        "spiffe://mesh.example",
        "spiffe://mesh.example/node/federal",
        "spiffe://mesh.example/agent/federal/letters",
        "spiffe://mesh.example/evaluator/e1",
        "/directory",
        "/agent/a/b",
        "be-nn",
        "STALE_EPOCH",
        "127.0.0.1 localhost ::1 node.example",
        "00000000-0000-4000-8000-000000000001",
        &blob.to_string(),
    ]
    .map(|text| text.as_bytes().to_vec())
    .to_vec()
}

fn status(bytes: &[u8]) {
    let mut steps = Steps::new(bytes);
    let code = Code::from_i32(steps.below(17).cast_signed());
    let details = steps.rest();
    let refusal = from_status(&Status::with_details(code, "message", details.to_vec().into()));
    assert!(refusal.message == "message");
    // Whatever a peer says, it is one of our reasons, and is handed on as that.
    let passed_on = from_status(&to_status(&refusal));
    assert!((passed_on.reason, &passed_on.message) == (refusal.reason, &refusal.message));
    // Whoever passes it on names a delay where one fits, and nowhere else; then it stays.
    assert!(from_status(&to_status(&passed_on)) == passed_on, "a refusal changes on its way");
}

fn status_seeds() -> Vec<Vec<u8>> {
    let seed = |reason: Reason| {
        let status = to_status(&Refusal::new(reason, "message"));
        [&[0], status.details()].concat()
    };
    [Reason::StaleEpoch, Reason::QuotaExceeded, Reason::Internal].map(seed).to_vec()
}
