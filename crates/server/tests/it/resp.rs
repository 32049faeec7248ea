//! The RESP door over real sockets.

use std::sync::Arc;
use std::time::Duration;

use firn_engine::Durability;
use firn_io::Env;
use firn_io::clock::ManualClock;
use tokio::io::AsyncReadExt;

use crate::resp_client::{Reply, Resp, bulk, encode, ok};
use crate::support::Running;

async fn start() -> (Running, Resp) {
    let server = Running::start().await;
    let client = Resp::connect(server.resp.unwrap()).await;
    (server, client)
}

#[tokio::test(flavor = "multi_thread")]
async fn one_store_behind_both_doors() {
    let (server, mut client) = start().await;
    assert_eq!(client.line("SET snow falls").await, ok());
    assert_eq!(server.get("/v1/keys/snow").await.text(), "falls");
    assert_eq!(server.put("/v1/keys/ice", b"cracks").await.status, 204);
    assert_eq!(client.line("GET ice").await, bulk("cracks"));
    assert_eq!(client.line("GET none").await, Reply::Null);
    let put = server.put("/v1/keys/ttl?ttl=100s", b"x").await;
    assert_eq!(put.status, 204);
    assert!((99..=100).contains(&client.line("TTL ttl").await.int()));
    assert!(server.metric("firn_connections").await >= 1);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn data_and_databases_survive_a_restart() {
    let (server, mut client) = start().await;
    client.line("SET a 1").await;
    assert_eq!(client.line("SELECT 3").await, ok());
    client.line("SET a 3 EX 1000").await;
    client.line("INCR a").await;
    let dir = server.stop().await;
    let server = Running::start_in(dir, |_| {}).await;
    let mut client = Resp::connect(server.resp.unwrap()).await;
    assert_eq!(client.line("GET a").await, bulk("1"));
    assert_eq!(client.line("SELECT 3").await, ok());
    assert_eq!(client.line("GET a").await, bulk("4"));
    assert!(client.line("TTL a").await.int() > 900);
    assert_eq!(client.line("FLUSHDB").await, ok());
    assert_eq!(client.line("DBSIZE").await, Reply::Int(0));
    client.line("SELECT 0").await;
    assert_eq!(client.line("DBSIZE").await, Reply::Int(1));
    assert_eq!(client.line("FLUSHALL").await, ok());
    assert_eq!(client.line("DBSIZE").await, Reply::Int(0));
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pipelines_are_answered_in_order_and_see_their_own_writes() {
    for durability in [Durability::Sync, Durability::Buffered] {
        let server = Running::start_with(|config| config.durability = durability).await;
        let mut client = Resp::connect(server.resp.unwrap()).await;
        let replies = client
            .pipeline(&[
                "SET a 1",
                "SET b 2",
                "GET a",
                "INCR a",
                "INCR a",
                "GET a",
                "MSET a 7 c 8",
                "MGET a b c d",
                "DEL b none",
                "GET b",
                "NOSUCH",
                "SET a",
                "APPEND a 0",
                "GETDEL a",
                "EXISTS a c",
                "KEYS *",
                "PING",
            ])
            .await;
        assert_eq!(
            replies[..7],
            [
                ok(),
                ok(),
                bulk("1"),
                Reply::Int(2),
                Reply::Int(3),
                bulk("3"),
                ok()
            ]
        );
        assert_eq!(
            replies[7].items(),
            [bulk("7"), bulk("2"), bulk("8"), Reply::Null]
        );
        assert_eq!(replies[8..10], [Reply::Int(1), Reply::Null]);
        assert!(
            replies[10]
                .error()
                .starts_with("ERR unknown command 'NOSUCH'")
        );
        assert_eq!(
            replies[11].error(),
            "ERR wrong number of arguments for 'set' command"
        );
        assert_eq!(replies[12..15], [Reply::Int(2), bulk("70"), Reply::Int(1)]);
        assert_eq!(replies[15].items(), [bulk("c")]);
        assert_eq!(replies[16], Reply::Simple("PONG".into()));
        // Thousands in one write.
        let lines: Vec<String> = (0..5_000).map(|i| format!("SET k{i} {i}")).collect();
        let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
        assert!(
            client
                .pipeline(&lines)
                .await
                .iter()
                .all(|reply| *reply == ok())
        );
        assert_eq!(client.line("GET k4999").await, bulk("4999"));
        assert_eq!(client.line("DBSIZE").await, Reply::Int(5_001));
        server.stop().await;
    }
}

/// They are looked up together; nobody may notice.
#[tokio::test(flavor = "multi_thread")]
async fn gets_that_follow_each_other_are_answered_one_by_one() {
    let (server, mut client) = start().await;
    let mut other = Resp::connect(server.resp.unwrap()).await;
    let long = format!("GET {}", "k".repeat(70_000));
    for round in 0..3 {
        let (set, set_next) = (format!("SET a {round}"), format!("SET a next{round}"));
        let mut lines = vec!["DEL a"];
        lines.extend(["GET a", "GET b", "GET none", "GET a", "GET b"]);
        lines.push(&set);
        lines.extend(["GET a"; 70]);
        lines.push(&set_next);
        lines.extend(["GET b", "GET a", &long, "GET a", "get a", "GeT a"]);
        lines.extend(["MULTI", "GET a", "GET a", "GET a", "GET a", "EXEC"]);
        lines.extend([
            "SELECT 1", "GET a", "GET a", "GET a", "GET a", "SELECT 0", "GET a",
        ]);
        let replies = client.pipeline(&lines).await;
        let b = if round == 0 { Reply::Null } else { bulk("2") };
        let old = bulk(&round.to_string());
        let new = bulk(&format!("next{round}"));
        let before = [Reply::Null, b.clone(), Reply::Null, Reply::Null, b.clone()];
        assert_eq!(replies[1..6], before);
        assert!(replies[7..77].iter().all(|reply| *reply == old));
        assert_eq!(replies[78..80], [b, new.clone()]);
        assert!(replies[80].error().contains("key"), "{:?}", replies[80]);
        assert!(replies[81..84].iter().all(|reply| *reply == new));
        assert_eq!(replies[89].items(), vec![new.clone(); 4]);
        assert!(replies[91..95].iter().all(|reply| *reply == Reply::Null));
        assert_eq!(replies[96], new);
        // What was read ahead is not kept for what comes later.
        assert_eq!(other.line("SET b 2").await, ok());
        assert_eq!(client.line("GET b").await, bulk("2"));
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn both_protocols_and_what_clients_send_first() {
    let (server, mut client) = start().await;
    let hello = client.line("HELLO 3 AUTH default x SETNAME me").await;
    let Reply::Map(fields) = &hello else {
        panic!("{hello:?}")
    };
    let field = |name: &str| {
        let at = fields.iter().position(|f| *f == bulk(name)).unwrap();
        &fields[at + 1]
    };
    assert_eq!(
        (field("proto"), field("server")),
        (&Reply::Int(3), &bulk("redis"))
    );
    assert_eq!(
        (field("mode"), field("role")),
        (&bulk("standalone"), &bulk("master"))
    );
    assert_eq!(field("modules"), &Reply::Array(vec![]));
    assert!(field("version").text().as_str() >= "7.2");
    assert_eq!(client.line("CLIENT GETNAME").await, bulk("me"));
    assert_eq!(client.line("GET none").await, Reply::Null);
    for line in [
        "CLIENT SETINFO LIB-NAME test",
        "CLIENT SETINFO LIB-VER 1.0",
        "SELECT 0",
        "READONLY",
        "CLIENT NO-EVICT ON",
    ] {
        assert_eq!(client.line(line).await, ok(), "{line}");
    }
    let refused = client.line("CLIENT MAINT_NOTIFICATIONS ON").await;
    assert!(
        refused.error().starts_with("ERR unknown subcommand"),
        "{refused:?}"
    );
    let info = client.line("INFO").await.text();
    for part in [
        "redis_version:7",
        "loading:0\r\n",
        "role:master\r\n",
        "cluster_enabled:0\r\n",
    ] {
        assert!(info.contains(part), "{part}");
    }
    assert!(
        client
            .line("CLIENT LIST")
            .await
            .text()
            .contains(" name=me ")
    );
    assert!(
        client
            .line("CLIENT INFO")
            .await
            .text()
            .contains("lib-name=test lib-ver=1.0")
    );
    let config = client.line("CONFIG GET save appendonly").await;
    assert_eq!(
        config,
        Reply::Map(vec![
            bulk("appendonly"),
            bulk("yes"),
            bulk("save"),
            bulk("")
        ])
    );
    let Reply::Map(docs) = client.line("COMMAND DOCS get firn.range").await else {
        panic!()
    };
    assert_eq!(docs.len(), 4);
    let described = client.line("COMMAND INFO set nosuch").await;
    let set = described.items()[0].items();
    assert_eq!((&set[0], &set[1]), (&bulk("set"), &Reply::Int(-3)));
    assert_eq!(described.items()[1], Reply::Null);
    let all = client.line("COMMAND").await;
    assert_eq!(
        Reply::Int(all.items().len() as i64),
        client.line("COMMAND COUNT").await
    );
    let keys = client.line("COMMAND GETKEYS MSET a 1 b 2").await;
    assert_eq!(keys.items(), [bulk("a"), bulk("b")]);
    assert_eq!(
        client.line("HELLO 9").await.error(),
        "NOPROTO unsupported protocol version"
    );
    assert_eq!(client.line("RESET").await, Reply::Simple("RESET".into()));
    assert_eq!(client.line("CLIENT GETNAME").await, Reply::Null);
    // Inline, as people type.
    client.send(b"\r\nset a \"b c\"\r\nGET a\nquit\r\n").await;
    assert_eq!(
        [
            client.reply().await,
            client.reply().await,
            client.reply().await
        ],
        [ok(), bulk("b c"), ok()]
    );
    assert_eq!(client.next().await, None);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn transactions() {
    let (server, mut client) = start().await;
    let mut other = Resp::connect(server.resp.unwrap()).await;
    let replies = client
        .pipeline(&["MULTI", "SET a 1", "INCR a", "LPUSH", "EXEC"])
        .await;
    assert!(replies[3].error().starts_with("ERR unknown command"));
    assert!(replies[4].error().starts_with("EXECABORT"));
    assert_eq!(client.line("GET a").await, Reply::Null);
    let replies = client
        .pipeline(&[
            "SET z 1",
            "MULTI",
            "SET a 1",
            "INCR a",
            "INCRBY a x",
            "GET a",
            "DEL z",
            "EXISTS z a",
            "DBSIZE",
            "KEYS *",
            "SET t 1 EX 100",
            "TTL t",
            "EXEC",
            "GET z",
        ])
        .await;
    let results = replies[12].items();
    assert_eq!(results[..2], [ok(), Reply::Int(2)]);
    assert!(results[2].error().contains("not an integer"));
    assert_eq!(
        results[3..7],
        [bulk("2"), Reply::Int(1), Reply::Int(1), Reply::Int(1)]
    );
    assert_eq!(results[7].items(), [bulk("a")]);
    assert_eq!(results[9], Reply::Int(100));
    assert_eq!(replies[13], Reply::Null);
    // Nobody else may touch what is watched, through whichever door.
    for other_door in [false, true] {
        client.line("WATCH a b").await;
        if other_door {
            server.put("/v1/keys/b", b"x").await;
        } else {
            other.line("SET b x").await;
        }
        let replies = client
            .pipeline(&["MULTI", "SET a lost", "EXEC", "GET a"])
            .await;
        assert_eq!(replies[2..], [Reply::NullArray, bulk("2")]);
    }
    let replies = client
        .pipeline(&["WATCH a", "UNWATCH", "SET a 3", "MULTI", "GET a", "EXEC"])
        .await;
    assert_eq!(replies[5].items(), [bulk("3")]);
    let replies = client
        .pipeline(&["WATCH a", "SET a 4", "MULTI", "GET a", "EXEC"])
        .await;
    assert_eq!(replies[4], Reply::NullArray, "the own write counts");
    for (line, part) in [
        ("EXEC", "ERR EXEC without MULTI"),
        ("DISCARD", "ERR DISCARD without MULTI"),
        ("MULTI", ""),
        ("MULTI", "ERR MULTI calls can not be nested"),
        ("WATCH a", "ERR WATCH inside MULTI is not allowed"),
        ("FIRN.CAS a 0 x", ""),
    ] {
        let reply = client.line(line).await;
        assert!(part.is_empty() || reply.error() == part, "{reply:?}");
    }
    let results = client.line("EXEC").await;
    assert!(results.items()[0].error().contains("not in a transaction"));
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_comes_between_reading_and_writing() {
    let (server, mut client) = start().await;
    let address = server.resp.unwrap();
    let mut tasks = Vec::new();
    for _ in 0..8 {
        tasks.push(tokio::spawn(async move {
            let mut client = Resp::connect(address).await;
            for _ in 0..20 {
                client.pipeline(&["INCR n", "APPEND s x", "INCR n"]).await;
                // Compare and set by hand.
                loop {
                    client.line("WATCH w").await;
                    let now: i64 = match client.line("GET w").await {
                        Reply::Null => 0,
                        value => value.text().parse().unwrap(),
                    };
                    let set = format!("SET w {}", now + 1);
                    let replies = client.pipeline(&["MULTI", &set, "EXEC"]).await;
                    if replies[2] != Reply::NullArray {
                        break;
                    }
                }
            }
        }));
    }
    for _ in 0..40 {
        // Another door, which takes no lock.
        let found = server.get("/v1/keys/n").await;
        if let (200, Some(etag)) = (found.status, found.header("etag")) {
            server
                .send("PUT", "/v1/keys/n", &[("if-match", etag)], &found.body)
                .await;
        }
    }
    for task in tasks {
        task.await.unwrap();
    }
    assert_eq!(client.line("GET n").await, bulk("320"));
    assert_eq!(client.line("STRLEN s").await, Reply::Int(160));
    assert_eq!(client.line("GET w").await, bulk("160"));
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn scans_return_every_key_that_stays() {
    let (server, mut client) = start().await;
    let lines: Vec<String> = (0..1_000).map(|i| format!("SET key:{i:04} {i}")).collect();
    let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
    client.pipeline(&lines).await;
    client.line("SET other 1").await;
    for (options, expected) in [
        ("", 1_001),
        (" MATCH key:*", 1_000),
        (" MATCH key:00?? COUNT 7", 100),
        (" COUNT 1001", 1_001),
        (" TYPE hash", 0),
    ] {
        let (mut cursor, mut found) = ("0".to_owned(), Vec::new());
        loop {
            let reply = client.line(&format!("SCAN {cursor}{options}")).await;
            let [next, keys] = reply.items() else {
                panic!("{reply:?}")
            };
            found.extend(keys.items().iter().map(Reply::text));
            cursor = next.text();
            if cursor == "0" {
                break;
            }
        }
        assert_eq!(found.len(), expected, "{options}");
    }
    assert_eq!(client.line("SCAN 123").await.error(), "ERR invalid cursor");
    assert_eq!(
        client.line("SCAN 0 COUNT 0").await.error(),
        "ERR syntax error"
    );
    let random = client.line("RANDOMKEY").await.text();
    assert_eq!(
        client.line(&format!("EXISTS {random}")).await,
        Reply::Int(1)
    );
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn our_own_commands() {
    let (server, mut client) = start().await;
    client.line("MSET a 1 b 2 c 3 d 4 p:1 x p:2 y").await;
    let page = client.line("FIRN.RANGE [b (d").await;
    assert_eq!(page.items()[0], Reply::Null);
    assert_eq!(
        page.items()[1].items(),
        [bulk("b"), bulk("2"), bulk("c"), bulk("3")]
    );
    let page = client.line("FIRN.RANGE - + LIMIT 2 REV KEYSONLY").await;
    assert_eq!(page.items()[0], bulk("(p:1"));
    assert_eq!(page.items()[1].items(), [bulk("p:2"), bulk("p:1")]);
    let page = client.line("FIRN.RANGE - (p:1 LIMIT 2 REV KEYSONLY").await;
    assert_eq!(page.items()[1].items(), [bulk("d"), bulk("c")]);
    let page = client.line("FIRN.PREFIX p: LIMIT 1").await;
    assert_eq!(page.items()[1].items(), [bulk("p:1"), bulk("x")]);
    let page = client.line("FIRN.PREFIX p: AFTER (p:1").await;
    assert_eq!(page.items()[1].items(), [bulk("p:2"), bulk("y")]);
    assert_eq!(client.line("FIRN.DELPREFIX p:").await, ok());
    assert_eq!(client.line("FIRN.DELRANGE (a [c").await, ok());
    assert_eq!(client.line("KEYS *").await.items(), [bulk("a"), bulk("d")]);
    let version = client.line("FIRN.CAS n 0 one").await.int();
    assert_eq!(client.line("FIRN.CAS n 0 two").await, Reply::Null);
    assert_eq!(
        client.line("FIRN.GETV n").await.items(),
        [Reply::Int(version), bulk("one")]
    );
    let second = client
        .line(&format!("FIRN.CAS n {version} two EX 100"))
        .await
        .int();
    assert!(second > version);
    assert_eq!(
        client.line(&format!("FIRN.CAD n {version}")).await,
        Reply::Int(0)
    );
    assert_eq!(
        client.line(&format!("FIRN.CAD n {second}")).await,
        Reply::Int(1)
    );
    assert_eq!(client.line("FIRN.GETV n").await, Reply::NullArray);
    assert_eq!(
        client.line("FIRN.DURABILITY buffered").await,
        bulk("buffered")
    );
    for (line, part) in [
        ("FIRN.RANGE a b", "a bound is"),
        ("FIRN.RANGE + -", "at most its end"),
        ("FIRN.RANGE - + LIMIT 0", "at least 1"),
        (
            "FIRN.RANGE - + LIMIT 1000000",
            "limits.page_entries is 10000, got 1000000",
        ),
        ("FIRN.CAS k -1 v", "a version is"),
        ("FIRN.DURABILITY maybe", "sync or buffered"),
    ] {
        let reply = client.line(line).await;
        assert!(reply.error().contains(part), "{line}: {reply:?}");
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_and_key_events() {
    let (server, mut client) = start().await;
    let mut listener = Resp::connect(server.resp.unwrap()).await;
    let joined = listener.line("SUBSCRIBE news").await;
    assert_eq!(
        joined.items(),
        [bulk("subscribe"), bulk("news"), Reply::Int(1)]
    );
    listener.line("PSUBSCRIBE n*").await;
    assert!(
        listener
            .line("GET a")
            .await
            .error()
            .starts_with("ERR Can't execute 'get'")
    );
    assert_eq!(
        listener.line("PING").await.items(),
        [bulk("pong"), bulk("")]
    );
    assert_eq!(client.line("PUBLISH news hi").await, Reply::Int(2));
    assert_eq!(
        listener.reply().await.items(),
        [bulk("message"), bulk("news"), bulk("hi")]
    );
    assert_eq!(
        listener.reply().await.items(),
        [bulk("pmessage"), bulk("n*"), bulk("news"), bulk("hi")]
    );
    assert_eq!(
        client.line("PUBSUB NUMSUB news x").await.items()[1],
        Reply::Int(1)
    );
    assert_eq!(client.line("PUBSUB NUMPAT").await, Reply::Int(1));
    listener.pipeline(&["UNSUBSCRIBE", "PUNSUBSCRIBE"]).await;
    assert_eq!(listener.line("GET a").await, Reply::Null);
    // RESP3: messages are pushed between replies. Events come with the acknowledged write.
    listener.line("HELLO 3").await;
    assert!(matches!(
        listener.line("PSUBSCRIBE __key*__:*").await,
        Reply::Push(_)
    ));
    assert_eq!(
        client.line("CONFIG SET notify-keyspace-events KEA").await,
        ok()
    );
    assert_eq!(
        client
            .line("CONFIG GET notify-keyspace-events")
            .await
            .items()[1],
        bulk("AKE")
    );
    client.pipeline(&["SET a 1 EX 100", "DEL a", "DEL a"]).await;
    for (channel, message) in [
        ("__keyspace@0__:a", "set"),
        ("__keyevent@0__:set", "a"),
        ("__keyspace@0__:a", "expire"),
        ("__keyevent@0__:expire", "a"),
        ("__keyspace@0__:a", "del"),
        ("__keyevent@0__:del", "a"),
    ] {
        assert_eq!(
            listener.reply().await.items()[2..],
            [bulk(channel), bulk(message)]
        );
    }
    assert_eq!(listener.line("GET a").await, Reply::Null);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn limits_and_nonsense() {
    let server = Running::start_with(|config| {
        config.limits.key_bytes = 100;
        config.limits.value_bytes = 10_000;
        config.limits.body_bytes = 20_000;
        config.connections = 3;
    })
    .await;
    let address = server.resp.unwrap();
    for (bytes, expected) in [
        (
            &b"*x\r\n"[..],
            "ERR Protocol error: invalid multibulk length",
        ),
        (
            b"*1\r\n$10001\r\n",
            "ERR Protocol error: invalid bulk length",
        ),
        (
            b"*1\r\nGET\r\n",
            "ERR Protocol error: expected '$', got 'G'",
        ),
        (
            b"get \"a\r\n",
            "ERR Protocol error: unbalanced quotes in request",
        ),
    ] {
        let mut client = Resp::connect(address).await;
        client.send(bytes).await;
        assert_eq!(client.reply().await.error(), expected);
        assert_eq!(client.next().await, None);
    }
    let mut client = Resp::connect(address).await;
    let long = "k".repeat(101);
    for line in [
        format!("SET {long} 1"),
        format!("GET {long}"),
        format!("MSET a 1 {long} 1"),
    ] {
        let reply = client.line(&line).await;
        assert_eq!(
            reply.error(),
            "ERR limits.key_bytes is 100, got 101",
            "{line}"
        );
    }
    assert_eq!(client.line("GET a").await, Reply::Null, "all or nothing");
    let value = "v".repeat(10_000);
    assert_eq!(client.run(&["SET", "a", &value]).await, ok());
    let reply = client.line("APPEND a x").await;
    assert!(
        reply.error().starts_with("ERR string exceeds maximum"),
        "{reply:?}"
    );
    assert_eq!(client.line("STRLEN a").await, Reply::Int(10_000));
    // A browser is not answered.
    let mut browser = Resp::connect(address).await;
    browser
        .send(b"POST / HTTP/1.1\r\nHost: x\r\n\r\nSET a 1\r\n")
        .await;
    assert_eq!(browser.next().await, None);
    // Connections: this one and two more.
    let held = [Resp::connect(address).await, Resp::connect(address).await];
    let mut one_more = None;
    for mut probe in held {
        if let Some(reply) = {
            probe.send(b"PING\r\n").await;
            probe.next().await
        } {
            one_more = Some((probe, reply));
        }
    }
    assert!(one_more.is_some());
    let mut refused = false;
    let mut held = Vec::new();
    for _ in 0..4 {
        let mut probe = Resp::connect(address).await;
        let mut byte = [0; 1];
        if let Ok(Ok(1)) =
            tokio::time::timeout(Duration::from_millis(200), probe.stream.read(&mut byte)).await
        {
            refused = byte == *b"-";
        }
        held.push(probe);
    }
    assert!(refused);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn large_values_arrive_in_pieces_and_leave_whole() {
    let (server, mut client) = start().await;
    let value: Vec<u8> = (0..3_000_000_u32).map(|i| (i % 251) as u8).collect();
    let bytes = encode(&[b"SET", b"big", &value]);
    for piece in bytes.chunks(100_003) {
        client.send(piece).await;
    }
    assert_eq!(client.reply().await, ok());
    assert_eq!(
        client.run_bytes(&[b"GET", b"big"]).await,
        Reply::Bulk(value.clone())
    );
    let reply = client.line("GETRANGE big 1000 1002").await;
    assert_eq!(reply, Reply::Bulk(value[1000..=1002].to_vec()));
    // Many large replies to one who reads late.
    let lines = ["GET big"; 20];
    for reply in client.pipeline(&lines).await {
        assert_eq!(reply, Reply::Bulk(value.clone()));
    }
    let dumped = client.run_bytes(&[b"DUMP", b"big"]).await;
    let Reply::Bulk(dumped) = dumped else {
        panic!()
    };
    assert_eq!(
        client
            .run_bytes(&[b"RESTORE", b"copy", b"0", &dumped])
            .await,
        ok()
    );
    assert_eq!(client.line("STRLEN copy").await, Reply::Int(3_000_000));
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_are_named_silenced_and_killed() {
    let (server, mut client) = start().await;
    let mut victim = Resp::connect(server.resp.unwrap()).await;
    let id = victim.line("CLIENT ID").await.int();
    assert_eq!(
        client.line(&format!("CLIENT KILL ID {id}")).await,
        Reply::Int(1)
    );
    assert_eq!(victim.next().await, None);
    assert_eq!(
        client.line("CLIENT KILL 1.2.3.4:5").await.error(),
        "ERR No such client"
    );
    client
        .send(b"CLIENT REPLY SKIP\r\nSET a 1\r\nCLIENT REPLY OFF\r\nSET b 2\r\nCLIENT REPLY ON\r\n")
        .await;
    assert_eq!(client.reply().await, ok());
    assert_eq!(
        client.line("MGET a b").await.items(),
        [bulk("1"), bulk("2")]
    );
    assert_eq!(
        client.line("CONFIG SET slowlog-log-slower-than 0").await,
        ok()
    );
    client.line("GET a").await;
    let slow = client.line("SLOWLOG GET 1").await;
    assert_eq!(slow.items()[0].items()[3].items(), [bulk("GET"), bulk("a")]);
    assert_eq!(client.line("WAIT 1 10").await, Reply::Int(0));
    assert_eq!(
        client.line("WAITAOF 1 0 0").await.items(),
        [Reply::Int(1), Reply::Int(0)]
    );
    assert_eq!(client.line("SAVE").await, ok());
    // Idle connections end when the server does.
    server.stop().await;
    assert_eq!(client.next().await, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn commands_are_limited_as_requests_are() {
    let clock = Arc::new(ManualClock::new(1_800_000_000_000));
    let env = Env {
        clock: clock.clone(),
        ..Env::os(2)
    };
    let dir = tempfile::tempdir().unwrap();
    let server = Running::start_by(env, dir, |config| {
        config.limits.rate = 2;
        config.limits.rate_burst = 4;
    })
    .await;
    let mut client = Resp::connect(server.resp.unwrap()).await;
    let replies = client
        .pipeline(&["SET a 1", "GET a", "MULTI", "SET a 2", "SET b 2", "PING"])
        .await;
    let queued = Reply::Simple("QUEUED".into());
    assert_eq!(replies[..4], [ok(), bulk("1"), ok(), queued]);
    for refused in &replies[4..] {
        let text = refused.error();
        assert!(
            text.contains("limits.rate is 2 requests a second"),
            "{text}"
        );
    }
    // Another connection of the same client has no burst of its own.
    let mut other = Resp::connect(server.resp.unwrap()).await;
    assert!(other.line("GET a").await.error().contains("limits.rate"));
    // A transaction that lost a command is not run without it.
    clock.advance(Duration::from_secs(1));
    let replies = client.pipeline(&["EXEC", "GET a"]).await;
    assert!(replies[0].error().starts_with("EXECABORT"));
    assert_eq!(replies[1], bulk("1"));
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn transactions_are_bounded() {
    let value = "v".repeat(200 << 10);
    let server = Running::start_with(|config| {
        config.limits.value_bytes = 512 << 10;
        config.limits.body_bytes = 512 << 10;
        config.limits.inflight_bytes = 3 << 20;
        config.write_delay = Duration::from_millis(1);
    })
    .await;
    let mut client = Resp::connect(server.resp.unwrap()).await;
    let set = format!("SET large {value}");
    assert_eq!(client.line(&set).await, ok());
    // All replies of a transaction together.
    let mut lines = vec!["MULTI", "SET a 1"];
    lines.extend(["GET large"; 8]);
    lines.extend(["EXEC", "GET a"]);
    let replies = client.pipeline(&lines).await;
    let text = replies[10].error();
    assert!(
        text.contains("replies of a transaction have at most"),
        "{text}"
    );
    assert_eq!(replies[11], Reply::Null);
    // The connection is where it was before.
    let mut lines = vec!["MULTI", "SELECT 5", &*set];
    lines.extend(["GET large"; 8]);
    lines.extend([
        "EXEC",
        "STRLEN large",
        "SELECT 5",
        "EXISTS large",
        "SELECT 0",
    ]);
    let replies = client.pipeline(&lines).await;
    assert!(replies[11].error().contains("at most"));
    assert_eq!(replies[12], Reply::Int(200 << 10));
    assert_eq!(replies[14], Reply::Int(0));
    // What waits for EXEC, where others have taken the memory.
    let all_free = async || {
        while server.service.inflight_bytes() > 0 {
            tokio::task::yield_now().await;
        }
    };
    all_free().await;
    let taken = server.service.reserve_body(3 << 20).unwrap();
    let replies = client.pipeline(&["MULTI", &set, "EXEC"]).await;
    let text = replies[1].error();
    assert!(
        text.starts_with("OOM ") && text.contains("limits.inflight_bytes"),
        "{text}"
    );
    assert!(replies[2].error().starts_with("EXECABORT"));
    drop(taken);
    assert_eq!(client.line("GET large").await, bulk(&value));
    all_free().await;
    // Keys that are watched.
    let many: Vec<String> = (0..1001).map(|n| format!("k{n}")).collect();
    let text = client.line(&format!("WATCH {}", many.join(" "))).await;
    assert!(
        text.error().contains("at most 1000 keys are watched"),
        "{text:?}"
    );
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn counters_and_help() {
    let (server, mut client) = start().await;
    client
        .pipeline(&["SET a 1", "GET a", "GET none", "GET"])
        .await;
    let info = client.line("INFO all").await.text();
    assert!(info.contains("cmdstat_get:calls=3,usec="), "{info}");
    assert!(info.contains("failed_calls=1\r\n"), "{info}");
    assert_eq!(client.line("CONFIG RESETSTAT").await, ok());
    let info = client.line("INFO all").await.text();
    assert!(!info.contains("cmdstat_get:"), "{info}");
    assert!(info.contains("keyspace_hits:0\r\n"), "{info}");
    for container in ["CLIENT", "CONFIG", "COMMAND", "OBJECT", "PUBSUB", "SLOWLOG"] {
        let help = client.line(&format!("{container} HELP")).await;
        let first = help.items()[0].text();
        assert!(first.starts_with(&format!("{container} <subcommand>")));
        let wrong = client.line(&format!("{container} HELP x")).await;
        assert!(wrong.error().contains("|help' command"), "{wrong:?}");
    }
    server.stop().await;
}
