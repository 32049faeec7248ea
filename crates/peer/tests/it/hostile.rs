//! Whoever does not belong, or does not behave.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use firn_peer::frame::{self, Decoded, Frame, Kind};
use firn_peer::hello::{Hello, Refusal, Welcome};
use firn_peer::{ClassLimits, ClusterId, PeerOptions};
use firn_replica::transport::{Class, Transport as _};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use crate::common::{CLUSTER, End, LONG, echo, options, peer, why};

fn hello() -> Hello {
    Hello {
        min: 1,
        max: 1,
        class: Class::Log,
        cluster: CLUSTER,
        from: 1,
        incarnation: 101,
        to: 2,
    }
}

fn framed(kind: Kind, stream: u32, id: u64, body: impl Into<Bytes>) -> Vec<u8> {
    let body = body.into();
    Frame {
        kind,
        stream,
        id,
        body,
    }
    .encode()
}

/// Sends bytes, and reads until the other side closes.
async fn talk(address: &str, bytes: &[u8]) -> Vec<Frame> {
    let mut stream = TcpStream::connect(address).await.unwrap();
    // It may close before everything is written.
    let _ = stream.write_all(bytes).await;
    let mut read = Vec::new();
    let reading = tokio::time::timeout(LONG, stream.read_to_end(&mut read));
    let _ = reading.await.expect("the connection ends");
    let mut buffer = BytesMut::from(&read[..]);
    let mut frames = Vec::new();
    while let Ok(Decoded::Frame(frame)) = frame::decode(&mut buffer, 1 << 20) {
        frames.push(frame);
    }
    frames
}

async fn server(options: PeerOptions) -> (End, String) {
    let server = End::new(options);
    let (address, _) = server.serve("127.0.0.1:0", echo()).await;
    (server, address)
}

#[tokio::test]
async fn whoever_does_not_belong_is_told_why() {
    let (_server, address) = server(options(2)).await;
    let refused = |hello: Hello| {
        let address = address.clone();
        async move {
            let frames = talk(&address, &framed(Kind::Hello, 0, 0, hello.encode())).await;
            assert_eq!((frames.len(), frames[0].kind), (1, Kind::Refusal));
            Refusal::decode(&frames[0].body).unwrap().text
        }
    };
    let cluster = ClusterId([6; 16]);
    let text = refused(Hello { cluster, ..hello() }).await;
    assert!(text.contains("belongs to cluster 0606"), "{text}");
    let text = refused(Hello { to: 9, ..hello() }).await;
    assert!(text.contains("this is node 2, not node 9"), "{text}");
    let text = refused(Hello {
        min: 7,
        max: 8,
        ..hello()
    })
    .await;
    assert!(text.contains("7 to 8"), "{text}");
    let text = refused(Hello {
        from: 2,
        incarnation: 9,
        ..hello()
    })
    .await;
    assert!(text.contains("two nodes have one number"), "{text}");
}

/// The same from the caller's side: the reason is in the error.
#[tokio::test]
async fn the_caller_reads_the_reason() {
    let (server, address) = server(options(2)).await;
    let stranger = End::new(PeerOptions::new(ClusterId([6; 16]), 1, 7));
    let error = why(stranger.ask(&peer(2, &address), Class::Log, b"x").await);
    assert!(error.contains("belongs to cluster"), "{error}");
    let client = End::new(options(1));
    let error = why(client.ask(&peer(3, &address), Class::Log, b"x").await);
    assert!(error.contains("this is node 2, not node 3"), "{error}");
    client
        .ask(&peer(2, &address), Class::Log, b"x")
        .await
        .unwrap();
    // A disk that was wiped comes back under the old number.
    let wiped = End::new(PeerOptions::new(CLUSTER, 1, 999));
    let error = why(wiped.ask(&peer(2, &address), Class::Log, b"x").await);
    assert!(error.contains("give it a new number"), "{error}");
    // And the other way round; also after a restart of who knew it.
    server.peers.close();
    let again = End::new(PeerOptions::new(CLUSTER, 2, 999));
    let (address, _) = again.serve("127.0.0.1:0", echo()).await;
    let error = why(client.ask(&peer(2, &address), Class::Urgent, b"x").await);
    assert!(error.contains("give it a new number"), "{error}");
    let env = firn_io::Env::os(1);
    let runtime = tokio::runtime::Handle::current();
    let client = firn_peer::Peers::new(options(1), &env, client.root(), runtime).unwrap();
    let call = client.call(&peer(2, &address), Class::Log, Bytes::new(), LONG);
    let error = why(call.await);
    assert!(error.contains("give it a new number"), "{error}");
}

#[tokio::test]
async fn garbage_ends_a_connection_and_nothing_else() {
    let (_server, address) = server(options(2)).await;
    let good = framed(Kind::Hello, 0, 0, hello().encode());
    let welcome = |frames: &[Frame]| {
        let welcome = frames.first().filter(|frame| frame.kind == Kind::Welcome);
        Welcome::decode(&welcome.expect("a welcome").body).expect("a welcome")
    };
    for bytes in [
        b"GET / HTTP/1.1\r\nhost: x\r\n\r\n".to_vec(),
        vec![0xff; 100],
        vec![0; 100],
        b"\x16\x03\x01\x02\x00\x01".to_vec(),
        framed(Kind::Request, 0, 1, "not yet"),
        framed(Kind::Hello, 0, 0, vec![0; 3000]),
    ] {
        let frames = talk(&address, &bytes).await;
        assert!(frames.iter().all(|f| f.kind == Kind::Refusal), "{frames:?}");
    }
    let mut too_long = good.clone();
    too_long.extend_from_slice(&u32::MAX.to_le_bytes());
    let mut flipped = framed(Kind::Request, 2, 0, "body");
    flipped[28] ^= 1;
    for then in [
        too_long[good.len()..].to_vec(),
        flipped,
        framed(Kind::Request, 3, 0, "of another stream"),
        framed(Kind::Hello, 2, 0, hello().encode()),
        framed(Kind::Answer, 2, 0, "to nothing"),
        framed(Kind::Credit, 2, 0, vec![1; 8]),
        framed(Kind::Ping, 2, 0, "with a body"),
    ] {
        let frames = talk(&address, &[&good[..], &then].concat()).await;
        assert_eq!(frames.len(), 1, "{frames:?}");
        assert_eq!(welcome(&frames).node, 2);
    }
    let client = End::new(options(1));
    let answer = client.ask(&peer(2, &address), Class::Log, b"x").await;
    assert_eq!(answer.unwrap(), "x");
}

#[tokio::test]
async fn more_than_was_granted_is_not_taken() {
    let mut small = options(2);
    small.log = ClassLimits {
        window_bytes: 1000,
        requests: 3,
        queue_bytes: 1000,
    };
    let server = End::new(small);
    let handler = crate::common::Answers(
        |_: Bytes| -> firn_replica::transport::BoxFuture<'static, Bytes> {
            Box::pin(std::future::pending())
        },
    );
    let (address, _) = server
        .serve("127.0.0.1:0", std::sync::Arc::new(handler))
        .await;
    let good = framed(Kind::Hello, 0, 0, hello().encode());
    let many: Vec<u8> = (0..4)
        .flat_map(|id| framed(Kind::Request, 2, id, "x"))
        .collect();
    let large: Vec<u8> = (0..2)
        .flat_map(|id| framed(Kind::Request, 2, id, vec![0; 600]))
        .collect();
    for then in [many, large] {
        let frames = talk(&address, &[&good[..], &then].concat()).await;
        assert_eq!(frames.len(), 1, "only the welcome");
    }
}

#[tokio::test]
async fn the_silent_are_dropped() {
    let mut quick = options(2);
    quick.hello_timeout = Duration::from_millis(20);
    quick.silence = Duration::from_millis(20);
    let (_server, address) = server(quick).await;
    assert!(talk(&address, b"").await.is_empty());
    assert!(talk(&address, &[0x20, 0]).await.is_empty());
    // Somebody who said hello, and then nothing.
    let frames = talk(&address, &framed(Kind::Hello, 0, 0, hello().encode())).await;
    assert_eq!(frames[0].kind, Kind::Welcome);
}

/// A machine that lost its power answers nothing and says nothing.
#[tokio::test]
async fn a_peer_that_fell_silent_is_noticed() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    tokio::spawn(async move {
        let mut kept = Vec::new();
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut bytes = [0; 1000];
            let _ = stream.read(&mut bytes).await.unwrap();
            let welcome = Welcome {
                version: 1,
                cluster: CLUSTER,
                node: 2,
                incarnation: 102,
                window: 1 << 20,
                requests: 10,
            };
            let welcome = framed(Kind::Welcome, 0, 0, welcome.encode());
            stream.write_all(&welcome).await.unwrap();
            kept.push(stream);
        }
    });
    let mut quick = options(1);
    quick.ping_interval = Duration::from_millis(10);
    quick.silence = Duration::from_millis(50);
    let client = End::new(quick);
    let result = client.ask(&peer(2, &address), Class::Urgent, b"x").await;
    let error = result.unwrap_err().to_string();
    assert!(error.contains("nothing was heard for"), "{error}");
}

#[tokio::test]
async fn plain_text_stays_on_the_machine() {
    let open = End::new(options(2));
    let error = open
        .peers
        .listen("0.0.0.0:0")
        .await
        .unwrap_err()
        .to_string();
    assert!(error.contains("no certificates"), "{error}");
    let error = why(open.ask(&peer(3, "192.0.2.1:7000"), Class::Log, b"x").await);
    assert!(error.contains("no certificates"), "{error}");
    let mut insecure = options(2);
    insecure.insecure = true;
    let open = End::new(insecure);
    open.peers.listen("0.0.0.0:0").await.unwrap();
    let error = why(open.ask(&peer(3, "no such host:1"), Class::Log, b"x").await);
    assert!(error.contains("cannot be found"), "{error}");
}
