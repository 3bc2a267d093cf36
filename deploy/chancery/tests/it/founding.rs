//! Hosts as folders, and `deploy/README.md` run on them as it stands: each
//! block in its host's folder, each server as a process of its own.

use chancery_types::{Entropy, SystemEntropy};
use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, mpsc};
use std::time::Duration;
use tempfile::TempDir;

/// A node's last line.
pub(crate) const NODE: &str = "chancery node serve --config config/node.toml";
pub(crate) const AGENT: &str = "chancery agent serve --config config/agent.toml";
const README: &str = include_str!("../../../README.md");
const CONFIG: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../config");
/// Port of the first listener; the others follow.
const FIRST_PORT: u16 = 7400;
/// Longest wait for a line of a process.
const PATIENCE: Duration = Duration::from_secs(120);
/// Stands for `scp`: hosts are folders. The last argument is where to.
const SCP: &str = "#!/bin/sh
set -eu
for to; do :; done
while [ $# -gt 1 ]; do cp \"$HOSTS/${1%%:*}/${1#*:}\" \"$to\"; shift; done
";
/// What listens, as the README writes it; the agents' is the same on two hosts.
const LISTENERS: [&str; 10] = [
    "pki.chancery.example:7400",
    "directory.chancery.example:7401",
    "evaluator.one.example:7402",
    "evaluator.two.example:7402",
    "evaluator.three.example:7402",
    "node.federal.example:7403",
    "node.regional.example:7403",
    "agent on federal",
    "agent on regional",
    "registry.chancery.example:7405",
];

/// The hosts, and where media are mounted.
const HOSTS: [&str; 9] =
    ["pki", "directory", "one", "two", "three", "federal", "regional", "registry", "media"];

/// A block of the README.
pub(crate) struct Block {
    host: &'static str,
    script: &'static str,
}

/// The README's blocks for a shell, in order.
pub(crate) fn blocks() -> Vec<Block> {
    let texts = README.split("```sh\n").skip(1).filter_map(|rest| rest.split_once("```"));
    let block = |(text, _): (&'static str, _)| {
        let (host, script) = text.strip_prefix("# ").unwrap().split_once('\n').unwrap();
        Block { host, script }
    };
    texts.map(block).collect()
}

/// A process whose lines can be waited for; killed when dropped.
pub(crate) struct Process {
    child: Child,
    lines: Mutex<mpsc::Receiver<String>>,
}

impl Process {
    fn spawn(mut command: Command) -> Self {
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        let (sender, lines) = mpsc::channel();
        std::thread::spawn(move || output.lines().map_while(Result::ok).try_for_each(|l| sender.send(l)));
        Self { child, lines: Mutex::new(lines) }
    }

    /// Its next line on standard output.
    pub(crate) fn line(&self) -> String {
        self.lines.lock().unwrap().recv_timeout(PATIENCE).expect("the process says something")
    }

    /// SIGKILL: it gets no chance to put anything in order.
    pub(crate) fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// SIGTERM; it must drain and end well.
    fn terminate(mut self) {
        let id = self.child.id().to_string();
        assert!(Command::new("kill").args(["-TERM", &id]).status().unwrap().success());
        assert!(self.child.wait().unwrap().success());
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Fails for one that has ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The hosts of a federation.
pub(crate) struct Hosts {
    root: TempDir,
    addresses: BTreeMap<&'static str, SocketAddr>,
    servers: BTreeMap<(&'static str, String), Process>,
    /// A host in a network namespace of its own: that of a process.
    far: Option<(&'static str, u32)>,
}

impl Hosts {
    /// Hosts with nothing but the program and the sample configuration.
    pub(crate) fn new() -> Self {
        // An address of this test alone, so that no caller is given a port of its own that a server
        // of ours is about to take: all of 127.0.0.0/8 is this machine.
        let [a, b, c] = (&SystemEntropy as &dyn Entropy).array();
        let own = Ipv4Addr::new(127, a.max(1), b, c.clamp(1, 254));
        let place = |(port, name)| (name, SocketAddr::from((own, port)));
        Self::at((FIRST_PORT..).zip(LISTENERS).map(place).collect(), None)
    }

    /// The same with one host in the network namespace of a process. It is reached at one
    /// address, all others at another.
    pub(crate) fn with_far(far: &'static str, process: u32, address: Ipv4Addr, others: Ipv4Addr) -> Self {
        let place = |(port, name): (u16, &'static str)| {
            let address = match name {
                // They serve their own hosts.
                "agent on federal" | "agent on regional" => Ipv4Addr::LOCALHOST,
                name if name.contains(&format!(".{far}.")) => address,
                _ => others,
            };
            (name, SocketAddr::from((address, port)))
        };
        Self::at((FIRST_PORT..).zip(LISTENERS).map(place).collect(), Some((far, process)))
    }

    fn at(addresses: BTreeMap<&'static str, SocketAddr>, far: Option<(&'static str, u32)>) -> Self {
        let root = tempfile::tempdir().unwrap();
        let hosts = Self { root, addresses, servers: BTreeMap::default(), far };
        let bin = hosts.path("bin", "");
        std::fs::create_dir(&bin).unwrap();
        std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_chancery"), bin.join("chancery")).unwrap();
        std::fs::write(bin.join("scp"), SCP).unwrap();
        make_executable(&bin.join("scp"));
        for host in HOSTS {
            std::fs::create_dir(hosts.path(host, "")).unwrap();
            std::os::unix::fs::symlink(CONFIG, hosts.path(host, "config")).unwrap();
        }
        hosts
    }

    /// Founds the federation: all blocks but the letter. Gives the resident's code.
    pub(crate) fn found(&mut self) -> String {
        let readme = blocks();
        let (_letter, founding) = readme.split_last().unwrap();
        let printed = founding.iter().map(|block| self.run(block)).last();
        printed.unwrap().trim().to_owned()
    }

    /// A file or folder of a host.
    pub(crate) fn path(&self, host: &str, name: &str) -> PathBuf {
        self.root.path().join(host).join(name)
    }

    /// Where a party listens.
    pub(crate) fn address(&self, name: &str) -> SocketAddr {
        self.addresses[name]
    }

    /// Runs a block; gives what it printed. A server at its end goes on running.
    pub(crate) fn run(&mut self, block: &Block) -> String {
        let (before, last) = block.script.trim_end().rsplit_once('\n').unwrap_or(("", block.script));
        if !last.contains(" serve --config ") {
            return self.shell(block.host, block.script);
        }
        let printed = self.shell(block.host, before);
        self.serve(block.host, last.trim_end());
        printed
    }

    /// Starts a server and waits until it listens.
    pub(crate) fn serve(&mut self, host: &'static str, line: &str) {
        // In the shell's place, so that signals reach the server.
        let server = Process::spawn(self.command(host, &format!("exec {line}")));
        let listens = server.line();
        assert!(listens.starts_with("listening on "), "{listens}");
        self.servers.insert((host, line.to_owned()), server);
    }

    /// Takes a server out, to kill it.
    pub(crate) fn server(&mut self, host: &'static str, line: &str) -> Process {
        self.servers.remove(&(host, line.to_owned())).unwrap()
    }

    /// Stops all servers, and expects that each ends well.
    pub(crate) fn terminate(self) {
        self.servers.into_values().for_each(Process::terminate);
    }

    /// Runs a script on a host; gives what it printed.
    pub(crate) fn shell(&self, host: &str, script: &str) -> String {
        let output = self.command(host, script).stderr(Stdio::inherit()).output().unwrap();
        assert!(output.status.success(), "on {host}:\n{script}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// Runs a script that may fail; whether it did not.
    pub(crate) fn tried(&self, host: &str, script: &str) -> bool {
        self.command(host, script).stderr(Stdio::inherit()).output().unwrap().status.success()
    }

    /// Starts a script whose lines are waited for.
    pub(crate) fn follow(&self, host: &str, line: &str) -> Process {
        Process::spawn(self.command(host, &format!("exec {line}")))
    }

    fn command(&self, host: &str, script: &str) -> Command {
        let mut script = script.to_owned();
        for (name, address) in &self.addresses {
            script = script.replace(name, &address.to_string());
        }
        for name in LISTENERS.iter().filter_map(|name| name.split_once(':')).map(|(name, _)| name) {
            script = script.replace(&format!("--name {name}"), "--name 127.0.0.1");
        }
        let path = format!("{}:{}", self.path("bin", "").display(), std::env::var("PATH").unwrap());
        let mut command = match self.far {
            Some((far, process)) if far == host => {
                let mut command = Command::new("nsenter");
                command.args(["--net", "--target", &process.to_string(), "sh"]);
                command
            }
            _ => Command::new("sh"),
        };
        command.args(["-euc", &script]).current_dir(self.path(host, "")).env("PATH", path);
        command.env("HOSTS", self.root.path());
        command.env("MEDIUM_A", self.path("media", "")).env("MEDIUM_B", self.path("media", ""));
        command.envs(self.settings(host));
        command
    }

    /// What an operator would adapt in a host's configuration files.
    fn settings(&self, host: &str) -> Vec<(String, String)> {
        let at = |name: &str| self.address(name).to_string();
        let [pki, directory] = [at(LISTENERS[0]), at(LISTENERS[1])];
        let set = |party: &str, key: &str, value: String| (format!("CHANCERY_{party}_{key}"), value);
        match host {
            "pki" => {
                vec![set("PKI", "LISTEN", pki), set("PKI", "NAMES", "[\"127.0.0.1\"]".to_owned())]
            }
            "directory" => vec![set("DIRECTORY", "LISTEN", directory), set("DIRECTORY", "PKI", pki)],
            "one" | "two" | "three" => vec![
                set("EVALUATOR", "ID", host.to_owned()),
                set("EVALUATOR", "LISTEN", at(&format!("evaluator.{host}.example:7402"))),
                set("EVALUATOR", "PKI", pki),
                set("EVALUATOR", "DIRECTORY", directory),
            ],
            "federal" | "regional" => {
                let node = at(&format!("node.{host}.example:7403"));
                let agent = at(&format!("agent on {host}"));
                vec![
                    ("CHANCERY_AGENT".to_owned(), format!("http://{agent}")),
                    set("NODE", "LISTEN", node.clone()),
                    set("NODE", "PKI", pki.clone()),
                    set("NODE", "DIRECTORY", directory),
                    set("AGENT", "LISTEN", agent),
                    set("AGENT", "PKI", pki),
                    set("AGENT", "NODE", node),
                ]
            }
            "registry" => vec![
                set("AUTHORITY", "LISTEN", at("registry.chancery.example:7405")),
                set("AUTHORITY", "PKI", pki),
                set("AUTHORITY", "NODE", at("node.federal.example:7403")),
            ],
            _ => Vec::new(),
        }
    }
}

fn make_executable(path: &Path) {
    use std::os::unix::fs::PermissionsExt as _;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o700)).unwrap();
}
