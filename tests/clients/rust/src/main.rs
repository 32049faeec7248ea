//! A conversation of redis-rs with the RESP port: `cargo run -- PORT`.

use redis::{Commands, Connection, RedisResult};

fn conversation(mut r: Connection, mut other: Connection) -> RedisResult<()> {
    redis::cmd("FLUSHALL").exec(&mut r)?;
    let () = r.set("a", 1)?;
    assert_eq!(r.incr::<_, _, i64>("a", 9)?, 10);
    assert_eq!(r.get::<_, Option<String>>("none")?, None);
    let () = r.mset(&[("b", "1"), ("c", "2")])?;
    assert_eq!(r.mget::<_, Vec<Option<i64>>>(&["a", "b", "none"])?, [Some(10), Some(1), None]);
    let () = r.set_ex("t", "x", 100)?;
    assert!(r.ttl::<_, i64>("t")? > 90);
    let mut pipe = redis::pipe();
    for i in 0..300 {
        pipe.set(format!("p:{i}"), i).ignore();
    }
    let (last,): (i64,) = pipe.get("p:299").query(&mut r)?;
    assert_eq!(last, 299);
    let (one, two): (i64, i64) = redis::pipe().atomic().incr("n", 1).incr("n", 1).query(&mut r)?;
    assert_eq!((one, two), (1, 2));
    redis::cmd("WATCH").arg("n").exec(&mut r)?;
    let () = other.incr("n", 1)?;
    let none: Option<(i64,)> = redis::pipe().atomic().incr("n", 1).query(&mut r)?;
    assert_eq!(none, None);
    assert_eq!(r.scan_match::<_, String>("p:*")?.count(), 300);
    let refused: RedisResult<()> = r.hset("h", "f", "v");
    assert!(refused.unwrap_err().to_string().contains("unknown command"));
    assert_eq!(r.get::<_, i64>("a")?, 10);
    Ok(())
}

fn main() -> RedisResult<()> {
    let port = std::env::args().nth(1).expect("the port");
    for protocol in ["", "?protocol=resp3"] {
        let client = redis::Client::open(format!("redis://127.0.0.1:{port}/{protocol}"))?;
        conversation(client.get_connection()?, client.get_connection()?)?;
        // A lost connection is noticed, and a new one serves.
        let mut lost = client.get_connection()?;
        let mut killer = client.get_connection()?;
        redis::cmd("CLIENT").arg("KILL").arg("TYPE").arg("normal").exec(&mut killer)?;
        assert!(lost.get::<_, i64>("a").is_err());
        assert_eq!(client.get_connection()?.get::<_, i64>("a")?, 10);
    }
    Ok(())
}
