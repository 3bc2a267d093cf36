//! Real connections over loopback between parties of a federation made for
//! the test; `grpc.health.v1` is the service behind them.

use super::files::{CHAIN, CRLS, CSR, IdentityFolder, KEY};
use super::provider::{ALPN, provider};
use super::verifier::PeerVerifier;
use super::*;
use chancery_pki_core::profile::{Ca, new_key_and_csr};
use chancery_pki_core::{
    CheckedCsr, Crls, Federation, LeafNames, Party, Serial, TrustAnchors, Validity, armour,
};
use chancery_types::clock::ManualClock;
use chancery_types::{Clock as _, SystemEntropy, Timestamp};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::ServerName;
use std::os::unix::fs::PermissionsExt as _;
use std::sync::Arc;
use std::time::Duration;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::service::RoutesBuilder;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::Channel;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;

const DAY: Duration = Duration::from_secs(86_400);

struct World {
    clock: Arc<ManualClock>,
    root: Ca,
    issuing: Ca,
    anchors: TrustAnchors,
}

impl World {
    fn new() -> Self {
        let clock = ManualClock::new(Timestamp::from_millis(1_700_000_000_000));
        let federation: Federation = "chancery.example".parse().unwrap();
        let life = Validity::starting(clock.now(), DAY * 300);
        let root = Ca::new_root(&federation, &Serial::random(&SystemEntropy), life).unwrap();
        let issuing = root.issue_ca(None, &Serial::random(&SystemEntropy), life).unwrap();
        let anchors = TrustAnchors::new(federation, root.certificate()).unwrap();
        Self { clock: Arc::new(clock), root, issuing, anchors }
    }

    fn party(&self, party: &Party) -> Member {
        let folder = tempfile::tempdir().unwrap();
        let member = Member { party: party.clone(), folder };
        let (key, csr) = new_key_and_csr().unwrap();
        member.files().create().unwrap();
        member.files().replace(KEY, key.as_bytes()).unwrap();
        member.files().replace(CSR, &csr).unwrap();
        self.certify(&member);
        self.revoke(&member, &[]);
        member
    }

    /// Writes a new certificate for a day and gives its serial.
    fn certify(&self, member: &Member) -> Serial {
        let serial = Serial::random(&SystemEntropy);
        let csr = CheckedCsr::check(&member.files().read(CSR).unwrap().unwrap()).unwrap();
        let life = Validity::starting(self.clock.now(), DAY);
        let names = LeafNames::default();
        let leaf = self.issuing.issue_leaf(&csr, &member.party, &names, &serial, life).unwrap();
        let chain = armour::write_chain(&[leaf, self.issuing.certificate().clone()]);
        member.files().replace(CHAIN, chain.as_bytes()).unwrap();
        serial
    }

    /// Gives `member` lists by which `serials` are revoked.
    fn revoke(&self, member: &Member, serials: &[Serial]) {
        let now = self.clock.now();
        let life = Validity { not_before: now, not_after: now.after(DAY * 10) };
        let revoked: Vec<_> = serials.iter().map(|serial| (*serial, now)).collect();
        let lists =
            [self.root.issue_crl(1, life, &[]).unwrap(), self.issuing.issue_crl(1, life, &revoked).unwrap()];
        member.files().replace(CRLS, armour::write_crls(&lists).as_bytes()).unwrap();
    }

    fn open(&self, member: &Member) -> Arc<Credentials> {
        self.try_open(member).unwrap()
    }

    fn try_open(&self, member: &Member) -> Result<Arc<Credentials>, TlsError> {
        Credentials::open(member.files(), self.anchors.clone(), Arc::clone(&self.clock) as _)
    }

    fn anonymous(&self) -> Arc<Credentials> {
        Credentials::anonymous(self.anchors.clone(), Crls::default(), Arc::clone(&self.clock) as _)
    }
}

struct Member {
    party: Party,
    folder: TempDir,
}

impl Member {
    fn files(&self) -> IdentityFolder {
        IdentityFolder::new(self.folder.path().join("identity"))
    }
}

struct Server {
    endpoint: String,
    counters: Arc<Counters>,
    seen: mpsc::UnboundedReceiver<ConnectionInfo>,
    _stop: DropGuard,
}

async fn serve(credentials: Arc<Credentials>, limits: Limits) -> Server {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = listener.local_addr().unwrap().to_string();
    let incoming = incoming(listener, credentials, limits).unwrap();
    let counters = incoming.counters();
    let (sender, seen) = mpsc::unbounded_channel();
    let (_, health) = tonic_health::server::health_reporter();
    let mut routes = RoutesBuilder::default();
    routes.add_service(InterceptedService::new(health, move |request: tonic::Request<()>| {
        let _ = sender.send(request.extensions().get::<ConnectionInfo>().unwrap().clone());
        Ok(request)
    }));
    let stop = CancellationToken::new();
    tokio::spawn(crate::serve::serve(incoming, routes, crate::serve::STREAMS, stop.clone()));
    Server { endpoint, counters, seen, _stop: stop.drop_guard() }
}

impl Server {
    /// Waits for a count that handshakes still going on will bring.
    async fn wait_for(&self, holds: impl Fn(&Figures) -> bool) {
        let wait = async {
            while !holds(&self.counters.figures()) {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), wait).await.expect("the count never came");
    }
}

async fn check(channel: &Channel) -> Result<(), tonic::Status> {
    HealthClient::new(channel.clone()).check(HealthCheckRequest::default()).await.map(drop)
}

fn node(name: &str) -> Party {
    Party::Node(name.parse().unwrap())
}

/// A server named `federal`, the credentials of a caller named `regional`, and both folders.
async fn pair(world: &World, limits: Limits) -> (Server, Arc<Credentials>, Arc<Credentials>, Member, Member) {
    let (federal, regional) = (world.party(&node("federal")), world.party(&node("regional")));
    let (ours, theirs) = (world.open(&federal), world.open(&regional));
    (serve(Arc::clone(&ours), limits).await, ours, theirs, federal, regional)
}

#[tokio::test]
async fn both_sides_know_each_other_and_the_connection() {
    let world = World::new();
    let (mut server, _, caller, ..) = pair(&world, Limits::default()).await;
    let (channel, exporter) = connect(&server.endpoint, node("federal"), Arc::clone(&caller)).await.unwrap();
    check(&channel).await.unwrap();
    check(&channel).await.unwrap();
    let (first, second) = (server.seen.recv().await.unwrap(), server.seen.recv().await.unwrap());
    assert_eq!(first.peer.as_ref().unwrap(), &caller.own().unwrap());
    assert_eq!(first.peer.as_ref().unwrap().party(), &node("regional"));
    assert_eq!(Some(first.exporter), exporter.latest());
    assert!(first.remote.ip().is_loopback());
    first.session.bind(Arc::new(7_u32)).unwrap();
    assert_eq!(second.session.bound::<u32>().as_deref(), Some(&7));
    assert_eq!(second.session.bound::<u64>(), None);
    assert_eq!(second.session.bind(Arc::new(8_u32)), Err(AlreadyBound));

    let (other, other_exporter) =
        connect(&server.endpoint, node("federal"), world.anonymous()).await.unwrap();
    check(&other).await.unwrap();
    let third = server.seen.recv().await.unwrap();
    assert!(third.peer.is_none());
    assert_eq!(Some(third.exporter), other_exporter.latest());
    assert_ne!(third.exporter, first.exporter);
    assert_eq!(third.session.bound::<u32>(), None);
    assert_eq!(server.counters.figures(), Figures { established: 2, ..Figures::default() });
}

#[tokio::test]
async fn another_party_than_expected_is_refused() {
    let world = World::new();
    let (server, _, caller, ..) = pair(&world, Limits::default()).await;
    for expected in [node("regional"), Party::Directory, Party::Pki] {
        let result = connect(&server.endpoint, expected, Arc::clone(&caller)).await;
        assert!(matches!(result, Err(TlsError::Chain(ChainError::WrongParty))));
    }
    let foreign = World::new();
    let result = connect(&server.endpoint, node("federal"), foreign.anonymous()).await;
    assert!(matches!(result, Err(TlsError::Chain(ChainError::UnknownIssuer))));
}

#[tokio::test]
async fn whoever_answers_must_hold_the_pinned_key() {
    let world = World::new();
    let (server, ours, caller, ..) = pair(&world, Limits::default()).await;
    let pinned = |pin| connect_pinned(&server.endpoint, node("federal"), pin, Arc::clone(&caller)).unwrap();
    check(&pinned(*ours.own().unwrap().key_pin())).await.unwrap();
    let status = check(&pinned([7; 32])).await.unwrap_err();
    assert!(matches!(cause(&status), Some(TlsError::WrongKey)));
}

#[tokio::test]
async fn a_lazy_channel_tells_its_cause() {
    let world = World::new();
    let (server, _, caller, ..) = pair(&world, Limits::default()).await;
    let (channel, exporter) = connect_lazy(&server.endpoint, Party::Directory, Arc::clone(&caller)).unwrap();
    assert_eq!(exporter.latest(), None);
    let status = check(&channel).await.unwrap_err();
    assert!(matches!(cause(&status), Some(TlsError::Chain(ChainError::WrongParty))));
    let (channel, exporter) = connect_lazy(&server.endpoint, node("federal"), caller).unwrap();
    check(&channel).await.unwrap();
    assert!(exporter.latest().is_some());
    for bad in ["", "localhost", "localhost:", "localhost:x", ":1", "a b:1", "localhost:70000"] {
        assert!(matches!(connect_lazy(bad, Party::Pki, world.anonymous()), Err(TlsError::Endpoint)), "{bad}");
    }
}

#[tokio::test]
async fn a_revoked_caller_is_refused_on_its_next_connection() {
    let world = World::new();
    let (server, ours, caller, federal, regional) = pair(&world, Limits::default()).await;
    let (old, _) = connect(&server.endpoint, node("federal"), Arc::clone(&caller)).await.unwrap();
    check(&old).await.unwrap();
    let serial = Serial::try_from(caller.own().unwrap().serial()).unwrap();
    world.revoke(&federal, &[serial]);
    ours.reload().unwrap();
    check(&old).await.expect("what is open goes on");
    let (new, _) = connect_lazy(&server.endpoint, node("federal"), Arc::clone(&caller)).unwrap();
    check(&new).await.unwrap_err();
    server.wait_for(|figures| figures.certificate >= 1).await;
    // The next certificate is another one: the caller gets in again.
    world.certify(&regional);
    caller.reload().unwrap();
    let (again, _) = connect(&server.endpoint, node("federal"), caller).await.unwrap();
    check(&again).await.unwrap();
}

#[tokio::test]
async fn an_expired_caller_is_refused() {
    let world = World::new();
    let (server, ours, caller, federal, _) = pair(&world, Limits::default()).await;
    world.clock.advance(DAY * 2);
    world.certify(&federal);
    ours.reload().unwrap();
    let (channel, _) = connect_lazy(&server.endpoint, node("federal"), caller).unwrap();
    check(&channel).await.unwrap_err();
    server.wait_for(|figures| figures.certificate >= 1 && figures.established == 0).await;
    let (anonymous, _) = connect(&server.endpoint, node("federal"), world.anonymous()).await.unwrap();
    check(&anonymous).await.unwrap();
}

#[tokio::test]
async fn stale_lists_shut_everyone_out() {
    let world = World::new();
    let (server, ours, _, federal, regional) = pair(&world, Limits::default()).await;
    world.clock.advance(DAY * 11);
    for member in [&federal, &regional] {
        world.certify(member);
    }
    ours.reload().unwrap();
    let caller = world.open(&regional);
    let result = connect(&server.endpoint, node("federal"), Arc::clone(&caller)).await;
    assert!(matches!(result, Err(TlsError::Chain(ChainError::StaleCrl))));
    world.revoke(&regional, &[]);
    caller.reload().unwrap();
    let (channel, _) = connect_lazy(&server.endpoint, node("federal"), Arc::clone(&caller)).unwrap();
    check(&channel).await.unwrap_err();
    server.wait_for(|figures| figures.certificate >= 1).await;
}

#[tokio::test]
async fn a_server_shows_its_new_certificate_without_restart() {
    let world = World::new();
    let (server, ours, caller, federal, regional) = pair(&world, Limits::default()).await;
    let (old, _) = connect(&server.endpoint, node("federal"), Arc::clone(&caller)).await.unwrap();
    let serial = Serial::try_from(ours.own().unwrap().serial()).unwrap();
    world.revoke(&regional, &[serial]);
    caller.reload().unwrap();
    let result = connect(&server.endpoint, node("federal"), Arc::clone(&caller)).await;
    assert!(matches!(result, Err(TlsError::Chain(ChainError::Revoked))));
    world.certify(&federal);
    ours.reload().unwrap();
    let (new, _) = connect(&server.endpoint, node("federal"), caller).await.unwrap();
    check(&new).await.unwrap();
    check(&old).await.expect("what is open goes on");
}

#[tokio::test]
async fn a_required_certificate_is_required() {
    let world = World::new();
    let limits = Limits { require_certificate: true, ..Limits::default() };
    let (server, _, caller, ..) = pair(&world, limits).await;
    let (channel, _) = connect_lazy(&server.endpoint, node("federal"), world.anonymous()).unwrap();
    check(&channel).await.unwrap_err();
    server.wait_for(|figures| figures.certificate >= 1).await;
    let (channel, _) = connect(&server.endpoint, node("federal"), caller).await.unwrap();
    check(&channel).await.unwrap();
}

#[tokio::test]
async fn noise_and_silence_leave_the_port_alive() {
    let world = World::new();
    let limits = Limits { handshake: Duration::from_millis(300), ..Limits::default() };
    let (server, _, caller, ..) = pair(&world, limits).await;
    let entropy: &dyn chancery_types::Entropy = &chancery_types::entropy::SeededEntropy::new(1);
    for length in [1, 5, 100, 1000, 70_000] {
        let mut noise = vec![0; length];
        entropy.fill(&mut noise);
        let mut tcp = TcpStream::connect(&server.endpoint).await.unwrap();
        let _ = tcp.write_all(&noise).await;
        let _ = tcp.shutdown().await;
        let _ = tcp.read_to_end(&mut Vec::new()).await;
    }
    server.wait_for(|figures| figures.protocol + figures.timeout == 5).await;
    // Says nothing: it is hung up on.
    let mut silent = TcpStream::connect(&server.endpoint).await.unwrap();
    let _ = silent.read_to_end(&mut Vec::new()).await;
    server.wait_for(|figures| figures.timeout >= 1).await;
    let (channel, _) = connect(&server.endpoint, node("federal"), caller).await.unwrap();
    check(&channel).await.unwrap();
}

#[tokio::test]
async fn slow_handshakes_hold_up_nobody_else() {
    let world = World::new();
    let (server, _, caller, ..) = pair(&world, Limits { handshakes: 64, ..Limits::default() }).await;
    let mut silent = Vec::new();
    for _ in 0..63 {
        silent.push(TcpStream::connect(&server.endpoint).await.unwrap());
    }
    let (channel, _) = connect(&server.endpoint, node("federal"), caller).await.unwrap();
    check(&channel).await.unwrap();
}

#[tokio::test]
async fn connections_are_capped() {
    let world = World::new();
    let (server, _, caller, ..) = pair(&world, Limits { connections: 1, ..Limits::default() }).await;
    let (first, _) = connect(&server.endpoint, node("federal"), Arc::clone(&caller)).await.unwrap();
    check(&first).await.unwrap();
    assert!(connect(&server.endpoint, node("federal"), Arc::clone(&caller)).await.is_err());
    server.wait_for(|figures| figures.over_limit == 1).await;
    check(&first).await.unwrap();
    drop(first);
    // The place is free once the server has seen the connection close.
    let again = async {
        loop {
            if let Ok((channel, _)) = connect(&server.endpoint, node("federal"), Arc::clone(&caller)).await {
                return check(&channel).await;
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(20), again).await.unwrap().unwrap();
}

#[tokio::test]
async fn only_tls_1_3_with_the_hybrid_group_first() {
    let world = World::new();
    let (server, _, caller, ..) = pair(&world, Limits::default()).await;
    let handshake = async |crypto: CryptoProvider, version: &'static rustls::SupportedProtocolVersion| {
        let verifier = PeerVerifier::of_server(&caller, caller.state(), node("federal"));
        let mut config = rustls::ClientConfig::builder_with_provider(Arc::new(crypto))
            .with_protocol_versions(&[version])
            .unwrap()
            .dangerous()
            .with_custom_certificate_verifier(verifier)
            .with_no_client_auth();
        config.alpn_protocols = vec![ALPN.to_vec()];
        let tcp = TcpStream::connect(&server.endpoint).await.unwrap();
        let name = ServerName::try_from("localhost").unwrap();
        let stream = tokio_rustls::TlsConnector::from(Arc::new(config)).connect(name, tcp).await?;
        let connection = stream.get_ref().1;
        assert_eq!(connection.protocol_version(), Some(rustls::ProtocolVersion::TLSv1_3));
        std::io::Result::Ok(connection.negotiated_key_exchange_group().unwrap().name())
    };
    let ours = || provider().as_ref().clone();
    let classical = CryptoProvider { kx_groups: vec![rustls::crypto::aws_lc_rs::kx_group::X25519], ..ours() };
    let tls13 = &rustls::version::TLS13;
    assert_eq!(handshake(ours(), tls13).await.unwrap(), rustls::NamedGroup::X25519MLKEM768);
    assert_eq!(handshake(classical, tls13).await.unwrap(), rustls::NamedGroup::X25519);
    let old = rustls::crypto::aws_lc_rs::default_provider();
    assert!(handshake(old, &rustls::version::TLS12).await.is_err());
    server.wait_for(|figures| figures.protocol == 1).await;
}

#[tokio::test]
async fn exposed_or_foreign_keys_are_refused() {
    let world = World::new();
    let member = world.party(&node("federal"));
    let key = member.files().path().join(KEY);
    for file in [KEY, CSR, CHAIN, CRLS] {
        let mode = std::fs::metadata(member.files().path().join(file)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{file}");
    }
    let folder = std::fs::metadata(member.files().path()).unwrap().permissions().mode();
    assert_eq!(folder & 0o777, 0o700);
    assert!(world.try_open(&member).is_ok());
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o640)).unwrap();
    assert!(matches!(world.try_open(&member), Err(TlsError::Exposed(KEY))));

    let other = world.party(&node("regional"));
    member.files().replace(KEY, &other.files().read(KEY).unwrap().unwrap()).unwrap();
    assert!(matches!(world.try_open(&member), Err(TlsError::KeyMismatch)));
    member.files().replace(KEY, b"rubbish").unwrap();
    assert!(matches!(world.try_open(&member), Err(TlsError::Content(KEY))));
    std::fs::remove_file(&key).unwrap();
    assert!(matches!(world.try_open(&member), Err(TlsError::File { .. })));
    std::fs::remove_file(other.files().path().join(CRLS)).unwrap();
    assert!(matches!(world.try_open(&other), Err(TlsError::File { file: CRLS, .. })));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    assert!(matches!(incoming(listener, world.anonymous(), Limits::default()), Err(TlsError::NoIdentity)));
}

#[tokio::test(start_paused = true)]
async fn replaced_files_are_noticed_and_broken_ones_ignored() {
    let world = World::new();
    let member = world.party(&node("federal"));
    let credentials = world.open(&member);
    let stop = CancellationToken::new();
    let watch = tokio::spawn(Arc::clone(&credentials).watch(stop.clone()));
    tokio::task::yield_now().await;
    let first = credentials.own().unwrap();

    let touch = |seconds: u64| {
        // Two writes within one tick of the file system's clock look alike.
        let file = std::fs::File::options().append(true).open(member.files().path().join(CHAIN)).unwrap();
        file.set_modified(std::time::UNIX_EPOCH + Duration::from_secs(seconds)).unwrap();
    };
    member.files().replace(CHAIN, b"rubbish").unwrap();
    touch(1_000);
    for _ in 0..5 {
        tokio::time::advance(Duration::from_secs(2)).await;
        tokio::task::yield_now().await;
    }
    assert_eq!(credentials.own().unwrap(), first);

    let serial = world.certify(&member);
    touch(2_000);
    for _ in 0..5 {
        tokio::time::advance(Duration::from_secs(2)).await;
        tokio::task::yield_now().await;
    }
    assert_eq!(credentials.own().unwrap().serial(), serial.as_bytes());
    stop.cancel();
    watch.await.unwrap();
}

#[test]
fn what_is_erased_was_overwritten_first() {
    let folder = tempfile::tempdir().unwrap();
    let (path, other) = (folder.path().join("secret"), folder.path().join("the same file"));
    files::replace(&path, b"a secret").unwrap();
    std::fs::hard_link(&path, &other).unwrap();
    files::erase(&path).unwrap();
    assert!(!path.exists());
    assert_eq!(std::fs::read(&other).unwrap(), [0; 8]);
    files::erase(&path).unwrap();
}
