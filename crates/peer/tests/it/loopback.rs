//! Order, classes, limits, time and loss.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use firn_peer::{ClassLimits, Direction};
use firn_replica::transport::{BoxFuture, Class, Transport, TransportError};
use parking_lot::Mutex;
use tokio::sync::{Semaphore, oneshot};

use crate::common::{Answers, End, LONG, echo, options, peer, why};

#[tokio::test]
async fn requests_of_a_class_begin_in_the_order_of_the_calls() {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let order = Arc::clone(&seen);
    // Later ones are answered first.
    let server = End::new(options(2));
    let handler = Answers(move |request: Bytes| -> BoxFuture<'static, Bytes> {
        let number = request[0];
        order.lock().push(number);
        Box::pin(async move {
            for _ in 0..(255 - number) {
                tokio::task::yield_now().await;
            }
            request
        })
    });
    let (address, _) = server.serve("127.0.0.1:0", Arc::new(handler)).await;
    let client = End::new(options(1));
    let to = peer(2, &address);
    // Of all lengths: some are copied, some are not.
    let calls: Vec<_> = (0..=255_u8)
        .map(|n| {
            let body = vec![n; 1 + usize::from(n % 5) * 5000];
            (n, client.peers.call(&to, Class::Log, body.into(), LONG))
        })
        .collect();
    for (n, call) in calls.into_iter().rev() {
        let answer = call.await.unwrap();
        assert!(answer.iter().all(|&b| b == n));
    }
    assert_eq!(*seen.lock(), (0..=255).collect::<Vec<u8>>());
    let stats = client.peers.stats();
    let [(2, Class::Log, Direction::Outgoing, link)] = &stats[..] else {
        panic!("{stats:?}");
    };
    assert_eq!((link.connected, link.connects, link.requests), (1, 1, 256));
    assert!(
        link.bytes_received > 256 * 5000 && link.frames_sent > 256,
        "{link:?}"
    );
}

/// A class whose requests are not answered holds up nobody else.
#[tokio::test]
async fn classes_do_not_wait_for_each_other() {
    let gate = Arc::new(Semaphore::new(0));
    let closed = Arc::clone(&gate);
    let server = End::new(options(2));
    let handler = Answers(move |request: Bytes| -> BoxFuture<'static, Bytes> {
        let gate = Arc::clone(&closed);
        Box::pin(async move {
            if request[0] == b'b' {
                gate.acquire().await.unwrap().forget();
            }
            request
        })
    });
    let (address, _) = server.serve("127.0.0.1:0", Arc::new(handler)).await;
    let client = End::new(options(1));
    let to = peer(2, &address);
    let bulk: Vec<_> = (0..200)
        .map(|_| {
            client
                .peers
                .call(&to, Class::Bulk, vec![b'b'; 1 << 18].into(), LONG)
        })
        .collect();
    for _ in 0..10 {
        assert_eq!(client.ask(&to, Class::Urgent, b"u").await.unwrap(), "u");
    }
    gate.add_permits(200);
    for call in bulk {
        assert_eq!(call.await.unwrap().len(), 1 << 18);
    }
}

#[tokio::test]
async fn what_waits_to_be_sent_is_limited_and_so_is_what_is_under_way() {
    let limits = ClassLimits {
        window_bytes: 10_000,
        requests: 4,
        queue_bytes: 20_000,
    };
    let mut of_client = options(1);
    of_client.log = limits;
    let mut of_server = options(2);
    of_server.log = limits;
    let gate = Arc::new(Semaphore::new(0));
    let begun = Arc::new(AtomicU64::new(0));
    let (closed, counted) = (Arc::clone(&gate), Arc::clone(&begun));
    let server = End::new(of_server);
    let handler = Answers(move |request: Bytes| -> BoxFuture<'static, Bytes> {
        let gate = Arc::clone(&closed);
        counted.fetch_add(1, Ordering::SeqCst);
        Box::pin(async move {
            gate.acquire().await.unwrap().forget();
            request
        })
    });
    let (address, _) = server.serve("127.0.0.1:0", Arc::new(handler)).await;
    let client = End::new(of_client);
    let to = peer(2, &address);
    let call = |bytes: usize| {
        client
            .peers
            .call(&to, Class::Log, vec![7; bytes].into(), LONG)
    };
    // More than the window, alone; then what is within it.
    let mut calls = vec![call(15_000)];
    while begun.load(Ordering::SeqCst) < 1 {
        tokio::task::yield_now().await;
    }
    calls.extend((0..2).map(|_| call(9_000)));
    let error = why(call(9_000).await);
    assert!(error.contains("at most 20000 bytes"), "{error}");
    assert_eq!(begun.load(Ordering::SeqCst), 1);
    // Given up before it was sent: not delivered, and known not to be.
    let timeout = Duration::from_millis(20);
    let late = client
        .peers
        .call(&to, Class::Log, vec![8; 10].into(), timeout);
    let error = why(late.await);
    assert!(error.contains("could not be sent in time"), "{error}");
    gate.add_permits(100);
    for call in calls {
        assert!(call.await.unwrap().iter().all(|&b| b == 7));
    }
    for _ in 0..50 {
        assert_eq!(call(3_000).await.unwrap().len(), 3_000);
    }
    assert_eq!(begun.load(Ordering::SeqCst), 53);
}

#[tokio::test]
async fn a_request_larger_than_a_mebibyte_goes_over() {
    let server = End::new(options(2));
    let (address, _) = server.serve("127.0.0.1:0", echo()).await;
    let client = End::new(options(1));
    let body: Bytes = (0..20 << 20)
        .map(|i: u32| (i % 251) as u8)
        .collect::<Vec<u8>>()
        .into();
    let call = client
        .peers
        .call(&peer(2, &address), Class::Log, body.clone(), LONG);
    assert!(call.await.unwrap() == body);
}

#[tokio::test]
async fn a_call_ends_when_its_time_is_over() {
    let server = End::new(options(2));
    let handler = Answers(|request: Bytes| -> BoxFuture<'static, Bytes> {
        Box::pin(async move {
            if request == "never" {
                std::future::pending::<()>().await;
            }
            request
        })
    });
    let (address, _) = server.serve("127.0.0.1:0", Arc::new(handler)).await;
    let client = End::new(options(1));
    let to = peer(2, &address);
    // There is a connection.
    client.ask(&to, Class::Urgent, b"now").await.unwrap();
    let (request, time) = (Bytes::from_static(b"never"), Duration::from_secs(1));
    let call = client.peers.call(&to, Class::Urgent, request, time);
    assert_eq!(call.await, Err(TransportError::Timeout));
}

#[tokio::test]
async fn a_node_that_is_away_is_found_again() {
    let client = End::new(options(1));
    let first = End::new(options(2));
    let (address, serving) = first.serve("127.0.0.1:0", echo()).await;
    let to = peer(2, &address);
    assert_eq!(client.ask(&to, Class::Urgent, b"1").await.unwrap(), "1");
    // A request that was sent is lost with the connection, and it is known that it may have been done.
    let (tell, told) = oneshot::channel();
    let tell = Mutex::new(Some(tell));
    let second = End::new(options(3));
    let handler = Answers(move |_: Bytes| -> BoxFuture<'static, Bytes> {
        let _ = tell.lock().take().unwrap().send(());
        Box::pin(std::future::pending())
    });
    let (other, _) = second.serve("127.0.0.1:0", Arc::new(handler)).await;
    let to_other = peer(3, &other);
    let request = Bytes::from_static(b"x");
    let call = client.peers.call(&to_other, Class::Log, request, LONG);
    told.await.unwrap();
    second.peers.close();
    assert!(matches!(call.await, Err(TransportError::Lost(_))));

    first.peers.close();
    serving.await.unwrap();
    // The connection may take a moment to end.
    while client.ask(&to, Class::Urgent, b"2").await.is_ok() {}
    let again = End::new(options(2));
    let (_, _) = again.serve(&address, echo()).await;
    assert_eq!(client.ask_until_answered(&to).await, "again");
    let stats = client.peers.stats();
    let link = &stats.iter().find(|row| row.0 == 2).unwrap().3;
    assert!(link.connects == 2 && link.losses == 1, "{link:?}");
}

#[tokio::test]
async fn nobody_there_is_said_at_once_and_not_asked_too_often() {
    // A port that nobody listens on.
    let address = {
        let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        socket.local_addr().unwrap().to_string()
    };
    let mut slow = options(1);
    slow.pause = (Duration::from_secs(600), Duration::from_secs(600));
    let client = End::new(slow);
    let to = peer(2, &address);
    for _ in 0..100 {
        let error = why(client.ask(&to, Class::Urgent, b"x").await);
        assert!(error.contains("refused"), "{error}");
    }
    let stats = client.peers.stats();
    assert_eq!(stats[0].3.connect_failures, 1);
    assert_eq!(stats[0].3.failures, 100);
}

#[tokio::test]
async fn a_connection_without_requests_is_closed_and_made_again() {
    let server = End::new(options(2));
    let (address, _) = server.serve("127.0.0.1:0", echo()).await;
    let mut brief = options(1);
    brief.idle = Duration::from_millis(1);
    let client = End::new(brief);
    let to = peer(2, &address);
    for round in 1..=3 {
        assert_eq!(client.ask(&to, Class::Bulk, b"x").await.unwrap(), "x");
        loop {
            let link = client.peers.stats()[0].3.clone();
            assert_eq!((link.connects, link.losses), (round, 0));
            if link.connected == 0 {
                break;
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }
}

#[tokio::test]
async fn round_trips_are_measured() {
    let server = End::new(options(2));
    let (address, _) = server.serve("127.0.0.1:0", echo()).await;
    let mut quick = options(1);
    quick.ping_interval = Duration::from_millis(4);
    let client = End::new(quick);
    let to = peer(2, &address);
    client.ask(&to, Class::Urgent, b"x").await.unwrap();
    while client.peers.stats()[0].3.round_trip.is_none() {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

#[tokio::test]
async fn a_node_that_moved_is_called_at_its_new_address() {
    let first = End::new(options(2));
    let second = End::new(options(2));
    let handler = |name: &'static str| {
        Arc::new(Answers(move |_: Bytes| -> BoxFuture<'static, Bytes> {
            Box::pin(async move { Bytes::from_static(name.as_bytes()) })
        }))
    };
    let (old, _) = first.serve("127.0.0.1:0", handler("old")).await;
    let (new, _) = second.serve("127.0.0.1:0", handler("new")).await;
    let client = End::new(options(1));
    assert_eq!(
        client.ask(&peer(2, &old), Class::Log, b"x").await.unwrap(),
        "old"
    );
    assert_eq!(
        client.ask(&peer(2, &new), Class::Log, b"x").await.unwrap(),
        "new"
    );
}
