//! `chancery chaos` as an operator runs it, for a minute.

use std::process::Command;

#[test]
fn a_minute_of_chaos_balances() {
    let chaos = ["chaos", "--minutes", "0.6", "--residents", "6", "--kills-per-minute", "40", "--json"];
    let output = Command::new(env!("CARGO_BIN_EXE_chancery")).args(chaos).output().unwrap();
    // When it fails, the second says where logs and stores are.
    let (printed, said) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{printed}{said}");
    let figures: serde_json::Value = serde_json::from_str(&printed).unwrap();
    for fault in ["lost", "duplicated", "wrong_order", "unfinished", "altered", "contradicted", "alarms"] {
        assert_eq!(figures[fault], 0, "{fault}: {printed}");
    }
    let count = |figure: &str| figures[figure].as_u64().unwrap();
    assert!(count("kills") >= 8 && count("letters") >= 20, "{printed}");
    assert!(figures["seed"].is_u64() && figures["killed"]["node"].is_u64(), "{printed}");
}

#[test]
fn the_help_says_what_it_does() {
    let output = Command::new(env!("CARGO_BIN_EXE_chancery")).args(["chaos", "--help"]).output().unwrap();
    let help = String::from_utf8(output.stdout).unwrap();
    assert!(help.contains("--kills-per-minute") && help.contains("faults.log"), "{help}");
    assert!(!help.contains("device --config"), "{help}");
}
