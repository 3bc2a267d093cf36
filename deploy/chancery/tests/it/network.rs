//! Nodes in two network namespaces with a bad line between them: 200 ms each way, 2 % of
//! all packets lost, and for a while none that arrives.

use crate::founding::{Hosts, NODE};
use crate::inside::{inside, system};
use crate::resident::{Resident, send};
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::Ipv4Addr;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

const LINE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/line.py");
const NEAR: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);
const FAR: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 2);

/// The line, and the process whose network namespace is at its far end.
struct Line {
    input: ChildStdin,
    output: BufReader<ChildStdout>,
    carrier: Child,
    namespace: Child,
}

impl Drop for Line {
    fn drop(&mut self) {
        for child in [&mut self.carrier, &mut self.namespace] {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

impl Line {
    fn new() -> Self {
        let namespace = Command::new("unshare").args(["--net", "sleep", "infinity"]).spawn().unwrap();
        let python = std::env::var_os("CHANCERY_TEST_PYTHON").unwrap_or_else(|| "python3".into());
        let mut command = Command::new(python);
        let mut carrier = command.arg(LINE).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let (input, output) = (carrier.stdin.take().unwrap(), carrier.stdout.take().unwrap());
        let mut line = Self { input, output: BufReader::new(output), carrier, namespace };
        line.says("ready");
        let far = line.namespace.id();
        system("ip link set lo up");
        system(&format!("ip addr add {NEAR} peer {FAR} dev near && ip link set near up"));
        system(&format!("until ip link set far netns {far} 2>&1; do :; done"));
        let inside = format!("ip link set lo up; ip addr add {FAR} peer {NEAR} dev far; ip link set far up");
        system(&format!("nsenter --net --target {far} sh -euc '{inside}'"));
        line
    }

    fn says(&mut self, what: &str) {
        let mut line = String::new();
        self.output.read_line(&mut line).unwrap();
        assert_eq!(line.trim(), what);
    }

    /// From now on packets take that long, and so many in a hundred are lost.
    fn set(&mut self, delay_ms: u32, loss_percent: u32) {
        writeln!(self.input, "{delay_ms} {loss_percent}").unwrap();
        self.says("ok");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_line_that_loses_packets_and_a_partition_lose_no_letter() {
    let name = "network::a_slow_line_that_loses_packets_and_a_partition_lose_no_letter";
    if !inside(name, &["--mount", "--net"]) {
        return;
    }
    let mut line = Line::new();
    let mut hosts = Hosts::with_far("regional", line.namespace.id(), FAR, NEAR);
    let code = hosts.found();
    let resident = Resident::enrol(&hosts, &code).await;
    send(&hosts, "federal", "one");
    resident.letters(1).await;

    line.set(200, 2);
    for text in ["two", "three", "four"] {
        send(&hosts, "federal", text);
    }
    let items = resident.letters(4).await;
    resident.answer(&items[3], "Thank you.").await;

    // Nobody hears that the node dies behind the partition, and comes back.
    line.set(0, 100);
    for text in ["five", "six"] {
        send(&hosts, "federal", text);
    }
    hosts.server("regional", NODE).kill();
    hosts.serve("regional", NODE);
    line.set(200, 2);
    send(&hosts, "federal", "seven");
    let items = resident.letters(7).await;
    let texts: Vec<_> = items.iter().map(|item| resident.text(item)).collect();
    assert_eq!(texts, ["one", "two", "three", "four", "five", "six", "seven"]);
    line.set(0, 0);
    assert_eq!(hosts.shell("federal", "chancery inbox --json").lines().count(), 1);

    resident.stop().await;
    hosts.terminate();
}
