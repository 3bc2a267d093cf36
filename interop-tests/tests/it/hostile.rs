//! A member's node that never acknowledges, or answers with what is no protocol: its link
//! breaks and comes back, its parcels wait, and nobody else is slowed.

use chancery_interop_tests::agent;
use chancery_interop_tests::hostile::{HostileNode, Manner, Seen, noise};
use chancery_interop_tests::mesh::{Mesh, Place, id};
use chancery_interop_tests::party::{Agent, Device, person_number};
use chancery_interop_tests::rogue::{HandLink, Rogue, answer};
use chancery_kit::tls::Credentials;
use chancery_pki_core::Party;
use chancery_proto::federation::v1::parcel::Parcel;
use chancery_types::{GroupId, Identifier};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::AsyncWriteExt as _;
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Instant, timeout};

/// How long a node bears that an acknowledgement is due.
const SILENCE: Duration = Duration::from_secs(30);
/// Longest wait for anything.
const PATIENCE: Duration = Duration::from_secs(60);

/// Two administrations, a person at the second, and a member `island` of whose node the
/// test is in charge.
struct Neighbours {
    mesh: Mesh,
    federal: Agent,
    _regional: Agent,
    person: Device,
    to: Identifier,
    island: Arc<Credentials>,
    address: String,
}

impl Neighbours {
    /// Them, and the place of island's node.
    async fn new() -> (Self, Place) {
        let mut mesh = Mesh::new().await;
        let federal = Agent::start(&mut mesh, "federal").await;
        let regional = Agent::start(&mut mesh, "regional").await;
        let to = person_number(1);
        let person = Device::enrol(&mesh, "regional", &to, "person").await.live();
        let island = mesh.certify(&Party::Node(id("island"))).await;
        // Its port is let go of and taken again: on an address from which nobody calls.
        let place = Place::of(TcpListener::bind("127.77.0.1:0").await.unwrap());
        let address = place.address.clone();
        mesh.admit("island", &address, &island, [].into()).await;
        (Self { mesh, federal, _regional: regional, person, to, island, address }, place)
    }

    /// Makes the federal node owe island an outcome: that of a submission to no group.
    async fn owe(&self) {
        let mut link = HandLink::of_new_member(&self.mesh, "federal", &self.island).await;
        let stranger = Rogue::new(&self.mesh, "regional").await;
        let submission = stranger.submission(&self.mesh, GroupId::from_bytes([3; 32]), 1);
        assert_eq!(link.hand_over(Parcel::Submission(submission)).await.unwrap(), None);
    }

    /// Sends a letter to the person and waits until it is there; it is the `nth`.
    async fn letter_arrives(&self, nth: u128) {
        let mut client = agent::connect(&self.federal.address).await;
        let request = agent::request(&agent::request_id(nth), &self.to, "A letter");
        answer(client.send(request).await).unwrap();
        self.person.inbox(usize::try_from(nth).unwrap()).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_that_never_acknowledges_loses_its_link_and_slows_nobody() {
    let (neighbours, place) = Neighbours::new().await;
    let manners = [Manner::Silent, Manner::Honest];
    let mut island = HostileNode::start(place, Arc::clone(&neighbours.island), "federal", &manners);
    neighbours.owe().await;
    assert_eq!(timeout(PATIENCE, island.sees()).await.unwrap(), Seen::Link);
    assert_eq!(timeout(PATIENCE, island.sees()).await.unwrap(), Seen::Parcels(1));
    let since = Instant::now();

    for nth in 1..=5 {
        neighbours.letter_arrives(nth).await;
    }
    assert_eq!(island.saw(), None, "five letters take longer than {SILENCE:?}");

    // The link counts as broken; on the next one the same parcel comes again.
    assert_eq!(timeout(PATIENCE, island.sees()).await.unwrap(), Seen::Link);
    assert!(since.elapsed() > SILENCE - Duration::from_secs(1), "given up after {:?}", since.elapsed());
    assert_eq!(timeout(PATIENCE, island.sees()).await.unwrap(), Seen::Parcels(1));
    neighbours.letter_arrives(6).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_that_breaks_the_protocol_gets_its_parcels_when_it_keeps_to_it() {
    let (neighbours, place) = Neighbours::new().await;
    let manners = [Manner::TooMuch, Manner::SecondHello, Manner::Empty, Manner::Honest];
    let mut island = HostileNode::start(place, Arc::clone(&neighbours.island), "federal", &manners);
    neighbours.owe().await;
    for manner in manners {
        assert_eq!(timeout(PATIENCE, island.sees()).await.unwrap(), Seen::Link, "{manner:?}");
        assert_eq!(timeout(PATIENCE, island.sees()).await.unwrap(), Seen::Parcels(1), "{manner:?}");
    }
    neighbours.letter_arrives(1).await;
    assert_eq!(island.saw(), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn noise_instead_of_frames_slows_nobody() {
    let (neighbours, place) = Neighbours::new().await;
    let mut callers = noise(place, Arc::clone(&neighbours.island), Arc::clone(&neighbours.mesh.entropy));
    neighbours.owe().await;
    for _ in 0..3 {
        timeout(PATIENCE, callers.recv()).await.unwrap().unwrap();
    }
    // And on a node's own port, before TLS and in its middle.
    let entropy = Arc::clone(&neighbours.mesh.entropy);
    for beginning in [&b""[..], &[22, 3, 1, 2, 0, 1, 0, 1, 252, 3, 3]] {
        let mut stranger = TcpStream::connect(&neighbours.mesh.nodes["federal"].address).await.unwrap();
        let noise = [beginning, &entropy.array::<8192>()].concat();
        // The node may hang up before it has read all.
        let _ = stranger.write_all(&noise).await;
    }
    neighbours.letter_arrives(1).await;

    drop(callers);
    let place = free_again(&neighbours.address).await;
    let mut island = HostileNode::start(place, Arc::clone(&neighbours.island), "federal", &[Manner::Honest]);
    assert_eq!(timeout(PATIENCE, island.sees()).await.unwrap(), Seen::Link);
    assert_eq!(timeout(PATIENCE, island.sees()).await.unwrap(), Seen::Parcels(1));
    neighbours.letter_arrives(2).await;
}

/// The same place once who listened there has gone.
async fn free_again(address: &str) -> Place {
    let bind = async || TcpListener::bind(address).await;
    Place::of(chancery_interop_tests::wait::success("the port is free", bind).await)
}
