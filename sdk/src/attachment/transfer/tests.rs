//! Against a real tonic server on the loopback: a small blob store that ends
//! calls at offsets from a list, and for one test a wire that is cut.

use super::*;
use crate::attachment::{Seal, open, seal};
use chancery_kit::status::to_status;
use chancery_proto::node::v1::blob_service_server::{BlobService, BlobServiceServer};
use chancery_types::entropy::SeededEntropy;
use futures::stream::BoxStream;
use futures::{StreamExt as _, stream};
use proptest::prelude::*;
use sha2::{Digest as _, Sha256};
use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use tokio::io::{AsyncWriteExt as _, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Response, Streaming};

const EXPIRES: Timestamp = Timestamp::from_millis(1_700_000_000_000);

/// How a call ends before its time.
#[derive(Clone, Copy, Debug)]
enum Cut {
    /// As a lost connection looks to the client.
    Lost,
    /// The stream ends as if all were said. For uploads as `Lost`.
    Short,
    /// The node is being restarted and says so.
    Restart,
}

#[derive(Default)]
struct Store {
    blobs: HashMap<BlobId, Vec<u8>>,
    /// Calls to come end after so many bytes; calls after that do not.
    cuts: VecDeque<(usize, Cut)>,
    refuse: Option<Reason>,
    calls: usize,
}

#[derive(Clone, Default)]
struct TestNode(Arc<Mutex<Store>>);

impl TestNode {
    fn with(&self, change: impl FnOnce(&mut Store)) {
        change(&mut self.0.lock().unwrap());
    }

    fn next_cut(&self) -> Result<Option<(usize, Cut)>, Status> {
        let mut store = self.0.lock().unwrap();
        store.calls += 1;
        match store.refuse {
            Some(reason) => Err(to_status(&Refusal::new(reason, "no"))),
            None => Ok(store.cuts.pop_front()),
        }
    }
}

impl Cut {
    fn status(self) -> Status {
        match self {
            Self::Lost | Self::Short => Status::unavailable("cut"),
            Self::Restart => to_status(&Refusal::new(Reason::ShuttingDown, "back soon")),
        }
    }
}

fn complete(id: &BlobId, bytes: &[u8]) -> bool {
    Sha256::digest(bytes)[..] == id.as_bytes()[..]
}

#[tonic::async_trait]
impl BlobService for TestNode {
    async fn stat_blob(
        &self,
        request: Request<wire::StatBlobRequest>,
    ) -> Result<Response<wire::StatBlobResponse>, Status> {
        let id = BlobId::try_from(&request.get_ref().blob_id).unwrap();
        let store = self.0.lock().unwrap();
        let bytes = store.blobs.get(&id).map_or(&[][..], Vec::as_slice);
        Ok(Response::new(wire::StatBlobResponse {
            stored: bytes.len() as u64,
            complete: complete(&id, bytes),
        }))
    }

    async fn write_blob(
        &self,
        request: Request<Streaming<wire::WriteBlobRequest>>,
    ) -> Result<Response<wire::WriteBlobResponse>, Status> {
        let cut = self.next_cut()?;
        let mut stream = request.into_inner();
        let mut head = None;
        let mut received = 0;
        while let Some(message) = stream.message().await? {
            let mut store = self.0.lock().unwrap();
            let (id, size) = *head.get_or_insert_with(|| {
                assert_eq!(message.expires_at_ms, EXPIRES.millis());
                (BlobId::try_from(&message.blob_id).unwrap(), message.size)
            });
            let blob = store.blobs.entry(id).or_default();
            if received == 0 && blob.len() as u64 != message.offset {
                return Err(to_status(&Refusal::new(Reason::WrongOffset, "elsewhere")));
            }
            assert!(message.data.len() <= PIECE);
            let room = cut.map_or(usize::MAX, |(after, _)| after - received);
            let kept = message.data.len().min(room);
            blob.extend_from_slice(&message.data[..kept]);
            received += kept;
            assert!(blob.len() as u64 <= size);
            if kept == room {
                return Err(cut.unwrap().1.status());
            }
        }
        let (id, _) = head.unwrap();
        assert!(complete(&id, &self.0.lock().unwrap().blobs[&id]));
        Ok(Response::new(wire::WriteBlobResponse {}))
    }

    type ReadBlobStream = BoxStream<'static, Result<wire::ReadBlobResponse, Status>>;

    async fn read_blob(
        &self,
        request: Request<wire::ReadBlobRequest>,
    ) -> Result<Response<Self::ReadBlobStream>, Status> {
        let cut = self.next_cut()?;
        let request = request.into_inner();
        assert_eq!(request.origin, "federal");
        let id = BlobId::try_from(&request.blob_id).unwrap();
        let blob = self.0.lock().unwrap().blobs[&id].clone();
        let rest = &blob[request.offset as usize..];
        let given = &rest[..rest.len().min(cut.map_or(usize::MAX, |(after, _)| after))];
        let piece =
            |data: &[u8]| Ok(wire::ReadBlobResponse { size: blob.len() as u64, data: data.to_vec().into() });
        let mut answers: Vec<_> = given.chunks(PIECE).map(piece).collect();
        if let Some((_, cut @ (Cut::Lost | Cut::Restart))) = cut {
            answers.push(Err(cut.status()));
        }
        Ok(Response::new(stream::iter(answers).boxed()))
    }
}

struct Bench {
    node: TestNode,
    address: SocketAddr,
    client: BlobServiceClient<Channel>,
    spool: Arc<Spool>,
    _folder: tempfile::TempDir,
}

fn client(address: SocketAddr) -> BlobServiceClient<Channel> {
    BlobServiceClient::new(Channel::from_shared(format!("http://{address}")).unwrap().connect_lazy())
}

impl Bench {
    async fn new() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let node = TestNode::default();
        let server = tonic::transport::Server::builder().add_service(BlobServiceServer::new(node.clone()));
        tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
        let folder = tempfile::tempdir().unwrap();
        let spool = Arc::new(Spool::open(folder.path(), 200 << 20).unwrap());
        Self { node, address, client: client(address), spool, _folder: folder }
    }

    async fn upload(&self, id: &BlobId, progress: Progress<'_>) -> Result<(), TransferError> {
        upload(&self.client, &self.spool, id, EXPIRES, &resume(), progress).await
    }

    async fn download(&self, seal: &Seal, progress: Progress<'_>) -> Result<(), TransferError> {
        download(&self.client, &self.spool, &file(seal), &resume(), progress).await
    }

    fn calls(&self) -> usize {
        self.node.0.lock().unwrap().calls
    }
}

fn resume() -> Resume {
    Resume {
        first_pause: Duration::from_micros(100),
        longest_pause: Duration::from_millis(1),
        ..Resume::new(&SeededEntropy::new(1))
    }
}

fn file(seal: &Seal) -> ExternalFile {
    seal.file("federal".parse().unwrap(), EXPIRES, "application/pdf", "a.pdf")
}

fn quiet(_: u64, _: u64) {}

/// Bytes that differ from place to place, so that a shifted piece is noticed.
fn content(length: usize) -> Vec<u8> {
    (0..length as u64).map(|n| (n.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8).collect()
}

#[tokio::test]
async fn fifty_megabytes_there_and_back_over_cuts() {
    let bench = Bench::new().await;
    let plaintext = content(50_000_000);
    let blob = seal(plaintext.clone(), &SeededEntropy::new(1)).unwrap();
    let seal = blob.seal().clone();
    bench.spool.put(&blob).unwrap();
    drop(blob);

    bench.node.with(|store| {
        store.cuts =
            [(0, Cut::Lost), (20_000_001, Cut::Lost), (7, Cut::Restart), (29_000_000, Cut::Lost)].into();
    });
    let furthest = AtomicU64::new(0);
    let note = |done, total| {
        assert_eq!(total, seal.size);
        furthest.fetch_max(done, Ordering::Relaxed);
    };
    bench.upload(&seal.id, &note).await.unwrap();
    assert_eq!(bench.calls(), 5);
    assert_eq!(furthest.into_inner(), seal.size);

    bench.spool.remove(&seal.id).unwrap();
    bench.node.with(|store| {
        store.cuts = [(33_333_333, Cut::Lost), (1, Cut::Short), (16_000_000, Cut::Restart)].into();
    });
    let last = AtomicU64::new(0);
    let note = |done, total| {
        assert_eq!(total, seal.size);
        assert!(last.swap(done, Ordering::Relaxed) < done, "never backwards: nothing is fetched twice");
    };
    bench.download(&seal, &note).await.unwrap();
    assert_eq!(bench.calls(), 9);
    assert_eq!(last.load(Ordering::Relaxed), seal.size);
    assert!(open(&file(&seal), bench.spool.read(&seal.id).unwrap()).unwrap() == plaintext);
}

#[tokio::test]
async fn again_moves_nothing() {
    let bench = Bench::new().await;
    let blob = seal(content(100_000), &SeededEntropy::new(2)).unwrap();
    bench.spool.put(&blob).unwrap();
    bench.upload(&blob.seal().id, &quiet).await.unwrap();
    assert_eq!(bench.calls(), 1);
    bench.upload(&blob.seal().id, &quiet).await.unwrap();
    bench.download(blob.seal(), &quiet).await.unwrap();
    assert_eq!(bench.calls(), 1);
}

#[tokio::test]
async fn a_node_that_gets_nowhere_is_given_up_and_the_rest_is_kept() {
    let bench = Bench::new().await;
    let blob = seal(content(300_000), &SeededEntropy::new(3)).unwrap();
    let seal = blob.seal();
    bench.spool.put(&blob).unwrap();
    bench.node.with(|store| store.cuts = [(0, Cut::Lost); 99].into());
    let error = bench.upload(&seal.id, &quiet).await.unwrap_err();
    assert!(
        matches!(&error, TransferError::Cut(refusal) if refusal.reason == Reason::PeerUnreachable),
        "{error:?}"
    );
    assert_eq!(bench.calls(), 5);

    bench.node.with(|store| {
        store.cuts = [(100_000, Cut::Lost)].into();
        store.cuts.extend([(0, Cut::Short); 99]);
        store.blobs.insert(seal.id, blob.ciphertext().to_vec());
        store.calls = 0;
    });
    bench.spool.remove(&seal.id).unwrap();
    assert!(matches!(bench.download(seal, &quiet).await, Err(TransferError::Cut(_))));
    // The one that brought something does not count against it.
    assert_eq!(bench.calls(), 6);
    bench.node.with(|store| store.cuts.clear());
    let least = AtomicU64::new(u64::MAX);
    bench.download(seal, &|done, _| _ = least.fetch_min(done, Ordering::Relaxed)).await.unwrap();
    assert!(least.into_inner() > 100_000, "went on where it was");
    assert_eq!(bench.spool.read(&seal.id).unwrap(), blob.ciphertext());
}

#[tokio::test]
async fn a_refusal_is_handed_on_at_once() {
    let bench = Bench::new().await;
    let blob = seal(content(10), &SeededEntropy::new(4)).unwrap();
    bench.node.with(|store| store.refuse = Some(Reason::QuotaExceeded));
    let missing = bench.upload(&blob.seal().id, &quiet).await.unwrap_err();
    assert!(matches!(missing, TransferError::Local(AttachmentError::Missing)));
    bench.spool.put(&blob).unwrap();
    let refused = Refusal::from(bench.upload(&blob.seal().id, &quiet).await.unwrap_err());
    assert_eq!(refused.reason, Reason::QuotaExceeded);
    assert_eq!(bench.calls(), 1);
    bench.spool.remove(&blob.seal().id).unwrap();
    bench.node.with(|store| store.refuse = Some(Reason::BlobUnknown));
    let refused = Refusal::from(bench.download(blob.seal(), &quiet).await.unwrap_err());
    assert_eq!(refused.reason, Reason::BlobUnknown);
    assert_eq!(bench.calls(), 2);
}

#[tokio::test]
async fn false_bytes_never_count() {
    let bench = Bench::new().await;
    let blob = seal(content(200_000), &SeededEntropy::new(5)).unwrap();
    let seal = blob.seal();
    let mut false_bytes = blob.ciphertext().to_vec();
    false_bytes[150_000] ^= 1;
    bench.node.with(|store| drop(store.blobs.insert(seal.id, false_bytes)));
    let error = bench.download(seal, &quiet).await.unwrap_err();
    assert!(matches!(error, TransferError::Misbehaved(_)), "{error:?}");
    assert_eq!(bench.spool.size(&seal.id).unwrap(), None);

    // Another size than the letter's: refused with the first piece.
    bench.node.with(|store| drop(store.blobs.insert(seal.id, blob.ciphertext()[..199_000].to_vec())));
    let error = bench.download(seal, &quiet).await.unwrap_err();
    assert!(matches!(error, TransferError::Misbehaved(_)), "{error:?}");

    // A node that claims to have more of an upload than there is.
    bench.spool.put(&blob).unwrap();
    bench.node.with(|store| drop(store.blobs.insert(seal.id, vec![0; 300_000])));
    let error = bench.upload(&seal.id, &quiet).await.unwrap_err();
    assert!(matches!(error, TransferError::Misbehaved(_)), "{error:?}");
}

#[tokio::test]
async fn a_part_that_our_disk_spoilt_is_fetched_anew() {
    let bench = Bench::new().await;
    let blob = seal(content(200_000), &SeededEntropy::new(6)).unwrap();
    let seal = blob.seal();
    bench.node.with(|store| drop(store.blobs.insert(seal.id, blob.ciphertext().to_vec())));
    let mut part = bench.spool.part(&seal.id, seal.size).unwrap().unwrap();
    part.append(&[0; 90_000]).unwrap();
    drop(part);
    bench.download(seal, &quiet).await.unwrap();
    assert_eq!(bench.calls(), 2);
    assert_eq!(bench.spool.read(&seal.id).unwrap(), blob.ciphertext());
}

#[tokio::test]
async fn a_node_that_stands_still_counts_as_cut() {
    // Takes the connection and never says a word.
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let folder = tempfile::tempdir().unwrap();
    let spool = Arc::new(Spool::open(folder.path(), 1 << 20).unwrap());
    let blob = seal(content(10), &SeededEntropy::new(7)).unwrap();
    let client = client(silent.local_addr().unwrap());
    let resume = Resume { stall: Duration::from_millis(10), ..resume() };
    let error = download(&client, &spool, &file(blob.seal()), &resume, &quiet).await.unwrap_err();
    assert!(
        matches!(&error, TransferError::Cut(refusal) if refusal.reason == Reason::DeadlineExceeded),
        "{error:?}"
    );
    spool.put(&blob).unwrap();
    let error = upload(&client, &spool, &blob.seal().id, EXPIRES, &resume, &quiet).await.unwrap_err();
    assert!(
        matches!(&error, TransferError::Cut(refusal) if refusal.reason == Reason::DeadlineExceeded),
        "{error:?}"
    );
}

/// A wire to `target` on which the first connections end after so many bytes in one direction.
async fn wire_that_is_cut(target: SocketAddr, cuts: &'static [u64]) -> (SocketAddr, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let connections = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&connections);
    tokio::spawn(async move {
        loop {
            let (mut near, _) = listener.accept().await.unwrap();
            let cut = cuts.get(count.fetch_add(1, Ordering::SeqCst)).copied();
            tokio::spawn(async move {
                let mut far = TcpStream::connect(target).await.unwrap();
                let Some(cut) = cut else {
                    let _ = copy_bidirectional(&mut near, &mut far).await;
                    return;
                };
                let (near_read, mut near_write) = near.split();
                let (far_read, mut far_write) = far.split();
                let (mut up, mut down) = (near_read.take(cut), far_read.take(cut));
                tokio::select! {
                    _ = tokio::io::copy(&mut up, &mut far_write) => {}
                    _ = tokio::io::copy(&mut down, &mut near_write) => {}
                }
                let _ = near_write.shutdown().await;
            });
        }
    });
    (address, connections)
}

#[tokio::test]
async fn goes_on_when_the_wire_itself_is_cut() {
    let bench = Bench::new().await;
    let blob = seal(content(3_000_000), &SeededEntropy::new(8)).unwrap();
    let seal = blob.seal();
    bench.spool.put(&blob).unwrap();
    const CUTS: &[u64] = &[10, 5_000, 700_000, 1_200_000];

    let (address, connections) = wire_that_is_cut(bench.address, CUTS).await;
    upload(&client(address), &bench.spool, &seal.id, EXPIRES, &resume(), &quiet).await.unwrap();
    assert_eq!(connections.load(Ordering::SeqCst), CUTS.len() + 1);
    assert_eq!(bench.node.0.lock().unwrap().blobs[&seal.id], blob.ciphertext());

    bench.spool.remove(&seal.id).unwrap();
    let (address, connections) = wire_that_is_cut(bench.address, CUTS).await;
    download(&client(address), &bench.spool, &file(seal), &resume(), &quiet).await.unwrap();
    assert_eq!(connections.load(Ordering::SeqCst), CUTS.len() + 1);
    assert_eq!(bench.spool.read(&seal.id).unwrap(), blob.ciphertext());
}

fn any_cuts() -> impl Strategy<Value = VecDeque<(usize, Cut)>> {
    let kind = prop_oneof![Just(Cut::Lost), Just(Cut::Short), Just(Cut::Restart)];
    proptest::collection::vec((1_usize..150_000, kind), 0..12).prop_map(Into::into)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn wherever_it_is_cut_it_arrives(length in 0_usize..400_000, up in any_cuts(), down in any_cuts(), seed: u64) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let bench = Bench::new().await;
            let plaintext = content(length);
            let blob = seal(plaintext.clone(), &SeededEntropy::new(seed)).unwrap();
            bench.spool.put(&blob).unwrap();
            bench.node.with(|store| store.cuts = up);
            bench.upload(&blob.seal().id, &quiet).await.unwrap();
            bench.spool.remove(&blob.seal().id).unwrap();
            bench.node.with(|store| store.cuts = down);
            bench.download(blob.seal(), &quiet).await.unwrap();
            let ciphertext = bench.spool.read(&blob.seal().id).unwrap();
            assert!(open(&file(blob.seal()), ciphertext).unwrap() == plaintext);
        });
    }
}
