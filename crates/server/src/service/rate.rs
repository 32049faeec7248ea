//! How many requests a second a client may send, the same through every door.
//!
//! A client is an address, or who it says it is where that is known. Each has a bucket of
//! `limits.rate_burst` requests that refills with `limits.rate` a second (the generic cell rate
//! algorithm: eight bytes a client, no timer). An IPv6 host owns a whole /64 and could send each
//! request from another address of it: the /64 is the client.
//!
//! The table has room for `limits.rate_clients`. When it is full those that were not seen for the
//! longest are forgotten, and begin with a full bucket when they come back: somebody with that many
//! addresses cannot be held by a limit of addresses, but neither can they fill the memory. Each
//! shard of it has two generations; a client that is seen joins the young one, and when that has its
//! half of the room the old one goes and the young one is the old one.

use std::collections::HashMap;
use std::hash::{BuildHasher as _, RandomState};
use std::net::{IpAddr, Ipv6Addr};
use std::num::NonZeroU32;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use firn_api::code::Code;
use firn_api::limits::Limits;
use firn_io::clock::Clock;
use governor::middleware::StateInformationMiddleware;
use governor::state::{InMemoryState, NotKeyed};
use governor::{Quota, RateLimiter};

use crate::service::Service;
use crate::service::error::{Error, Result};

/// Parts of the table with a lock each.
const SHARDS: usize = 16;

/// Whose requests are counted together.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Client {
    /// A host.
    Address(IpAddr),
    /// A user, wherever it comes from.
    Identity(Arc<str>),
}

impl Client {
    /// The client behind this address.
    pub fn at(address: IpAddr) -> Self {
        Self::Address(match address.to_canonical() {
            IpAddr::V6(v6) => {
                let network = u128::from(v6) >> 64 << 64;
                IpAddr::V6(Ipv6Addr::from(network))
            }
            v4 => v4,
        })
    }
}

/// What a client may still do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Allowance {
    /// Requests that it may send at once after a rest.
    pub burst: u32,
    /// How many of them are left.
    pub remaining: u32,
    /// Until they are all back.
    pub full_in: Duration,
}

type Bucket = RateLimiter<NotKeyed, InMemoryState, Ticks, StateInformationMiddleware>;

/// The buckets of all clients.
#[derive(Debug)]
pub(crate) struct Rate {
    quota: Quota,
    per_second: u32,
    clock: Ticks,
    shards: [Mutex<Shard>; SHARDS],
    /// Seeded by the system: nobody can choose clients that fall into one shard.
    hasher: RandomState,
    /// Clients that a generation of a shard has room for.
    room: usize,
}

#[derive(Debug, Default)]
struct Shard {
    young: HashMap<Client, Bucket>,
    old: HashMap<Client, Bucket>,
}

fn lock(shard: &Mutex<Shard>) -> MutexGuard<'_, Shard> {
    shard.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The server's clock, as the limiter wants it.
#[derive(Clone, Debug)]
struct Ticks(Arc<dyn Clock>);

impl governor::clock::Clock for Ticks {
    type Instant = Duration;

    fn now(&self) -> Duration {
        self.0.monotonic()
    }
}

impl Rate {
    /// Buckets, if the limits ask for them.
    pub(crate) fn new(limits: &Limits, clock: Arc<dyn Clock>) -> Option<Self> {
        let count = |n: u64| NonZeroU32::new(u32::try_from(n).unwrap_or(u32::MAX));
        let per_second = count(limits.rate)?;
        let burst = count(limits.rate_burst).unwrap_or(per_second);
        let room = usize::try_from(limits.rate_clients).unwrap_or(usize::MAX);
        Some(Self {
            quota: Quota::per_second(per_second).allow_burst(burst),
            per_second: per_second.get(),
            clock: Ticks(clock),
            shards: Default::default(),
            hasher: RandomState::new(),
            room: (room / SHARDS / 2).max(1),
        })
    }

    fn admit(&self, client: &Client) -> Result<Allowance> {
        let hash = self.hasher.hash_one(client);
        let mut shard = lock(&self.shards[hash as usize % SHARDS]);
        if !shard.young.contains_key(client) {
            let bucket = shard.old.remove(client).unwrap_or_else(|| {
                RateLimiter::direct_with_clock(self.quota, self.clock.clone()).with_middleware()
            });
            if shard.young.len() >= self.room {
                shard.old = std::mem::take(&mut shard.young);
            }
            shard.young.insert(client.clone(), bucket);
        }
        let checked = shard.young.get(client).map(Bucket::check);
        drop(shard);
        let burst = self.quota.burst_size().get();
        match checked.transpose() {
            // It was put there if it was not.
            Ok(None) => Err(Error::new(Code::Internal, "a bucket was lost")),
            Ok(Some(state)) => {
                let remaining = state.remaining_burst_capacity();
                let missing = f64::from(burst.saturating_sub(remaining));
                Ok(Allowance {
                    burst,
                    remaining,
                    full_in: Duration::from_secs_f64(missing / f64::from(self.per_second)),
                })
            }
            Err(refused) => {
                let wait = refused.wait_time_from(self.clock.0.monotonic());
                let ms = u64::try_from(wait.as_nanos().div_ceil(1_000_000)).unwrap_or(u64::MAX);
                let detail = format!(
                    "limits.rate is {} requests a second, {burst} at once, for each client",
                    self.per_second
                );
                Err(Error {
                    limit: Some(u64::from(self.per_second)),
                    retry_after_ms: Some(ms.max(1)),
                    ..Error::new(Code::RateLimited, detail)
                })
            }
        }
    }
}

impl Rate {
    fn len(&self) -> u64 {
        let of = |shard| {
            let shard: MutexGuard<'_, Shard> = lock(shard);
            shard.young.len() + shard.old.len()
        };
        self.shards.iter().map(of).sum::<usize>() as u64
    }
}

impl Service {
    /// Counts a request of `client`; a door calls it once for each. `None`: there is no limit.
    ///
    /// # Errors
    /// Rate limited, with the time after which it may try again.
    pub fn admit(&self, client: &Client) -> Result<Option<Allowance>> {
        match self.rate() {
            Some(rate) => rate.admit(client).map(Some),
            None => Ok(None),
        }
    }

    /// How many clients' rates are remembered now.
    pub fn rate_clients(&self) -> u64 {
        self.rate().map_or(0, Rate::len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use firn_io::clock::ManualClock;

    fn rate(limits: Limits) -> (Rate, Arc<ManualClock>) {
        let clock = Arc::new(ManualClock::new(0));
        (Rate::new(&limits, clock.clone()).unwrap(), clock)
    }

    fn limits(rate: u64, rate_burst: u64) -> Limits {
        Limits {
            rate,
            rate_burst,
            ..Limits::default()
        }
    }

    fn host(n: u32) -> Client {
        Client::at(IpAddr::V4(n.into()))
    }

    #[test]
    fn without_a_rate_there_is_no_table() {
        let clock = Arc::new(ManualClock::new(0));
        assert!(Rate::new(&Limits::default(), clock).is_none());
    }

    #[test]
    fn a_burst_is_taken_at_once_and_comes_back_with_time() {
        let (rate, clock) = rate(limits(10, 4));
        for left in (0..4).rev() {
            let allowance = rate.admit(&host(1)).unwrap();
            assert_eq!((allowance.burst, allowance.remaining), (4, left));
            let missing = u64::from(4 - left);
            assert_eq!(allowance.full_in, Duration::from_millis(100 * missing));
        }
        let refused = rate.admit(&host(1)).unwrap_err();
        assert_eq!(refused.code, Code::RateLimited);
        assert_eq!(refused.limit, Some(10));
        assert_eq!(refused.retry_after_ms, Some(100));
        // Refusals cost nothing, and others are not held.
        assert!(rate.admit(&host(2)).is_ok());
        clock.advance(Duration::from_millis(99));
        assert_eq!(rate.admit(&host(1)).unwrap_err().retry_after_ms, Some(1));
        clock.advance(Duration::from_millis(1));
        assert!(rate.admit(&host(1)).is_ok());
        assert!(rate.admit(&host(1)).is_err());
        clock.advance(Duration::from_secs(3_600));
        assert_eq!(rate.admit(&host(1)).unwrap().remaining, 3);
    }

    #[test]
    fn without_a_burst_it_is_the_rate() {
        let (rate, _) = rate(limits(3, 0));
        assert_eq!(rate.admit(&host(1)).unwrap().burst, 3);
    }

    #[test]
    fn many_addresses_do_not_fill_the_memory() {
        let (rate, _) = rate(Limits {
            rate_clients: 1_000,
            ..limits(1, 1)
        });
        assert!(rate.admit(&host(0)).is_ok());
        for n in 1..20_000 {
            assert!(rate.admit(&host(n)).is_ok());
            // Who keeps coming is not forgotten.
            assert!(n % 100 != 0 || rate.admit(&host(0)).is_err());
        }
        assert!(rate.len() > 400 && rate.len() <= 1_000, "{}", rate.len());
    }

    #[test]
    fn the_neighbours_of_an_address_are_the_same_client() {
        let at = |text: &str| Client::at(text.parse().unwrap());
        assert_eq!(at("2001:db8::1"), at("2001:db8::ffff:1"));
        assert_ne!(at("2001:db8::1"), at("2001:db8:0:1::1"));
        assert_eq!(at("::ffff:10.0.0.1"), at("10.0.0.1"));
        assert_ne!(at("10.0.0.1"), at("10.0.0.2"));
        assert_ne!(at("10.0.0.1"), Client::Identity("10.0.0.1".into()));
    }
}
