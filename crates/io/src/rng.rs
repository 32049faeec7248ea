#![allow(
    clippy::disallowed_methods,
    reason = "this file is the door to the kernel's entropy"
)]
//! Entropy: from the kernel in production, from a seed in tests.
//!
//! [`OsEntropy`] and [`SeededEntropy`] are the shared sources behind [`Entropy`]: one 64-bit counter
//! each (SplitMix64, Steele, Lea and Flood 2014), so that drawing is one atomic addition. [`Rng`] is
//! the plain generator for one owner (xoshiro256++, Blackman and Vigna 2019). None is for secrets.

use std::fmt::Debug;
use std::hash::{BuildHasher, RandomState};
use std::io::Read;
use std::sync::atomic::{AtomicU64, Ordering};

/// A source of random numbers that threads may share.
pub trait Entropy: Send + Sync + Debug {
    /// The next 64 random bits. Not for secrets.
    fn next_u64(&self) -> u64;
}

const GOLDEN_GAMMA: u64 = 0x9e37_79b9_7f4a_7c15;

/// The output function of SplitMix64: spreads a counter over all 64 bits.
fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Random numbers that differ in every process.
#[derive(Debug)]
pub struct OsEntropy {
    source: SeededEntropy,
}

impl OsEntropy {
    /// A source seeded by the kernel.
    pub fn new() -> Self {
        Self {
            source: SeededEntropy::new(kernel_seed()),
        }
    }
}

impl Default for OsEntropy {
    fn default() -> Self {
        Self::new()
    }
}

impl Entropy for OsEntropy {
    fn next_u64(&self) -> u64 {
        self.source.next_u64()
    }
}

fn kernel_seed() -> u64 {
    let mut seed = [0; 8];
    let read = std::fs::File::open("/dev/urandom").and_then(|mut file| file.read_exact(&mut seed));
    match read {
        Ok(()) => u64::from_le_bytes(seed),
        // No such device here (a bare chroot, another operating system): the standard library
        // seeds its hash maps from the kernel by other means.
        Err(_) => RandomState::new().hash_one(0_u64),
    }
}

/// The same numbers for the same seed, in the order in which they are drawn.
#[derive(Debug)]
pub struct SeededEntropy {
    counter: AtomicU64,
}

impl SeededEntropy {
    /// A source that starts at `seed`.
    pub fn new(seed: u64) -> Self {
        Self {
            counter: AtomicU64::new(seed),
        }
    }
}

impl Entropy for SeededEntropy {
    fn next_u64(&self) -> u64 {
        let before = self.counter.fetch_add(GOLDEN_GAMMA, Ordering::Relaxed);
        mix(before.wrapping_add(GOLDEN_GAMMA))
    }
}

/// A generator with one owner: fast, and the same numbers for the same seed on every machine.
#[derive(Clone, Debug)]
pub struct Rng {
    state: [u64; 4],
}

impl Rng {
    /// A generator that starts at `seed`; near seeds give unrelated numbers.
    pub fn new(seed: u64) -> Self {
        let word = |i: u64| mix(seed.wrapping_add(GOLDEN_GAMMA.wrapping_mul(i)));
        Self {
            state: [word(1), word(2), word(3), word(4)],
        }
    }

    /// The next 64 random bits.
    #[inline]
    pub fn next_u64(&mut self) -> u64 {
        let s = &mut self.state;
        let result = s[0].wrapping_add(s[3]).rotate_left(23).wrapping_add(s[0]);
        let shifted = s[1] << 17;
        s[2] ^= s[0];
        s[3] ^= s[1];
        s[1] ^= s[2];
        s[0] ^= s[3];
        s[2] ^= shifted;
        s[3] = s[3].rotate_left(45);
        result
    }

    /// A number below `bound`; 0 if `bound` is 0. The bias is at most `bound / 2^64`.
    #[inline]
    pub fn below(&mut self, bound: u64) -> u64 {
        ((u128::from(self.next_u64()) * u128::from(bound)) >> 64) as u64
    }

    /// A number in `low..=high`; `low` if the range is empty.
    pub fn between(&mut self, low: u64, high: u64) -> u64 {
        match high.saturating_sub(low).checked_add(1) {
            Some(count) => low + self.below(count),
            None => self.next_u64(),
        }
    }

    /// An index into something of length `len`; 0 if `len` is 0.
    pub fn index(&mut self, len: usize) -> usize {
        self.below(len as u64) as usize
    }

    /// A number in `0.0..1.0`.
    pub fn unit(&mut self) -> f64 {
        (self.next_u64() >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// `true` with the given probability: never for 0.0, always for 1.0.
    pub fn chance(&mut self, probability: f64) -> bool {
        self.unit() < probability
    }

    /// `true` once in `n` draws on average; always for 0 and 1.
    pub fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }

    /// Puts `items` into a random order, each equally likely.
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for i in (1..items.len()).rev() {
            items.swap(i, self.index(i + 1));
        }
    }

    /// Fills `out` with random bytes.
    pub fn fill_bytes(&mut self, out: &mut [u8]) {
        for chunk in out.chunks_mut(8) {
            let bytes = self.next_u64().to_le_bytes();
            chunk.copy_from_slice(&bytes[..chunk.len()]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_decides_everything() {
        let (a, b) = (SeededEntropy::new(7), SeededEntropy::new(7));
        assert!((0..100).all(|_| a.next_u64() == b.next_u64()));
        let (mut a, mut b, mut c) = (Rng::new(7), Rng::new(7), Rng::new(8));
        assert!((0..100).all(|_| a.next_u64() == b.next_u64()));
        assert_ne!(a.next_u64(), c.next_u64());
        // Published first output of SplitMix64 for the seed 0.
        assert_eq!(SeededEntropy::new(0).next_u64(), 0xe220_a839_7b1d_cdaf);
    }

    #[test]
    fn the_kernel_gives_different_seeds() {
        assert_ne!(OsEntropy::new().next_u64(), OsEntropy::new().next_u64());
    }

    #[test]
    fn ranges_hold_and_are_covered() {
        let mut rng = Rng::new(1);
        let mut seen = [0_u32; 10];
        for _ in 0..10_000 {
            seen[rng.index(10)] += 1;
            assert!((5..=9).contains(&rng.between(5, 9)));
        }
        assert!(seen.iter().all(|&n| (800..1200).contains(&n)), "{seen:?}");
        assert_eq!((rng.below(0), rng.below(1), rng.between(3, 3)), (0, 0, 3));
        let _ = rng.between(0, u64::MAX);
        assert!((0..100).all(|_| rng.chance(1.0) && !rng.chance(0.0) && rng.one_in(1)));
    }

    #[test]
    fn shuffle_keeps_the_items_and_fill_fills() {
        let mut rng = Rng::new(2);
        let mut items: Vec<u32> = (0..50).collect();
        rng.shuffle(&mut items);
        assert_ne!(items, (0..50).collect::<Vec<u32>>());
        items.sort_unstable();
        assert_eq!(items, (0..50).collect::<Vec<u32>>());
        let mut bytes = [0; 13];
        rng.fill_bytes(&mut bytes);
        assert!(bytes[8..].iter().any(|&b| b != 0));
    }
}
