//! `chancery pki …` as an operator types it.

use chancery_pki::{Authority, PkiArgs, run};
use chancery_types::clock::ManualClock;
use chancery_types::{SystemEntropy, Timestamp};
use clap::{CommandFactory as _, Parser};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::Arc;
use tokio_util::sync::CancellationToken;

#[derive(Parser)]
struct Program {
    #[command(flatten)]
    pki: PkiArgs,
}

async fn pki(folder: &Path, words: &[&str]) -> Result<(), String> {
    let folder = folder.to_string_lossy();
    let start = ["pki", "--dir", &folder];
    let words = start.iter().chain(words);
    let program = Program::try_parse_from(words).map_err(|error| error.to_string())?;
    let clock = Arc::new(ManualClock::new(Timestamp::from_millis(1_700_000_000_000)));
    let stop = CancellationToken::new();
    stop.cancel();
    run(program.pki, clock, Arc::new(SystemEntropy), stop).await.map_err(|error| error.to_string())
}

#[tokio::test]
async fn an_operators_day() {
    Program::command().debug_assert();
    let home = tempfile::tempdir().unwrap();
    let folder = home.path().join("pki");
    let secret = home.path().join("passphrase");
    std::fs::write(&secret, "correct horse battery\n").unwrap();
    let secret_file = secret.to_string_lossy().into_owned();
    let init = ["init", "--federation", "chancery.example", "--passphrase-file", &secret_file];

    let error = pki(&folder, &["token", "--party", "node/federal"]).await.unwrap_err();
    assert!(error.contains("pki init"), "{error}");
    std::fs::set_permissions(&secret, std::fs::Permissions::from_mode(0o644)).unwrap();
    assert!(pki(&folder, &init).await.unwrap_err().contains("0600"));
    std::fs::set_permissions(&secret, std::fs::Permissions::from_mode(0o600)).unwrap();
    pki(&folder, &init).await.unwrap();
    assert!(pki(&folder, &init).await.unwrap_err().contains("already"));

    pki(&folder, &["token", "--party", "node/federal", "--name", "localhost", "--json"]).await.unwrap();
    pki(&folder, &["token", "--party", "/agent/federal/letters"]).await.unwrap();
    pki(&folder, &["revoke", "--party", "node/federal"]).await.unwrap();
    pki(&folder, &["revoke", "--serial", &"4a".repeat(16)]).await.unwrap();
    pki(&folder, &["crl"]).await.unwrap();
    pki(&folder, &["issuing", "--passphrase-file", &secret_file]).await.unwrap();
    let key = "07".repeat(32);
    pki(&folder, &["bundle", "--governance-key", &key]).await.unwrap();
    let config = home.path().join("pki.toml");
    let serve = ["serve", "--config", &config.to_string_lossy()];
    std::fs::write(&config, "listen = '127.0.0.1:0'\nnames = ['localhost']").unwrap();
    pki(&folder, &serve).await.unwrap();
    std::fs::write(&config, "listen = '127.0.0.1:0'\nnames = []\nleaf_hours = 721").unwrap();
    assert!(pki(&folder, &serve).await.unwrap_err().contains("from 1 to 720"));

    for (words, hint) in [
        (&["token", "--party", "nobody"][..], "names no node"),
        (&["token", "--party", "node/a", "--name", "*.example"], "without wildcards"),
        (&["token", "--party", "node/a", "--hours", "0"], "0"),
        (&["revoke"], "--serial"),
        (&["revoke", "--serial", "4a"], "16"),
        (&["bundle", "--governance-key", &key, "--threshold", "2"], "governance_threshold"),
        (&["init", "--federation", "Chancery", "--passphrase-file", &secret_file], "trust domain"),
    ] {
        let error = pki(&folder, words).await.unwrap_err();
        assert!(error.contains(hint), "{words:?}: {error}");
    }
    let clock = Arc::new(ManualClock::new(Timestamp::from_millis(1_700_000_000_000)));
    let authority = Authority::open(&folder, clock, Arc::new(SystemEntropy)).await.unwrap();
    assert_eq!(authority.anchors().federation().as_str(), "chancery.example");
}
