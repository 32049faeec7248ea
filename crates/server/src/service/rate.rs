//! How many requests a second a client may send, the same through every door.
//!
//! A client is an address, or who it says it is where that is known. Each has a bucket of
//! `limits.rate_burst` requests that refills with `limits.rate` a second (the generic cell rate
//! algorithm: eight bytes a client, no timer). An IPv6 host owns a whole /64 and could send each
//! request from another address of it: the /64 is the client.
//!
//! The table has room for `limits.rate_clients`. When it is full the ones asked about least are
//! forgotten and begin with a full bucket when they come back: somebody with that many addresses
//! cannot be held by a limit of addresses, but neither can they fill the memory.

use std::convert::Infallible;
use std::net::{IpAddr, Ipv6Addr};
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use firn_api::code::Code;
use firn_api::limits::Limits;
use firn_io::clock::Clock;
use governor::middleware::StateInformationMiddleware;
use governor::state::{InMemoryState, NotKeyed};
use governor::{Quota, RateLimiter};
use quick_cache::sync::Cache;

use crate::service::Service;
use crate::service::error::{Error, Result};

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
    clients: Cache<Client, Arc<Bucket>>,
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
            clients: Cache::new(room),
        })
    }

    fn admit(&self, client: &Client) -> Result<Allowance> {
        let new = || {
            let bucket = RateLimiter::direct_with_clock(self.quota, self.clock.clone());
            Ok::<_, Infallible>(Arc::new(bucket.with_middleware()))
        };
        let bucket = match self.clients.get_or_insert_with(client, new) {
            Ok(bucket) => bucket,
            Err(never) => match never {},
        };
        let burst = self.quota.burst_size().get();
        match bucket.check() {
            Ok(state) => {
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
        self.rate().map_or(0, |rate| rate.clients.len() as u64)
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
            rate_clients: 100,
            ..limits(1, 1)
        });
        for n in 0..10_000 {
            assert!(rate.admit(&host(n)).is_ok());
        }
        assert!(rate.clients.len() <= 100, "{}", rate.clients.len());
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
