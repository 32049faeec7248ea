//! Keys, values and chance, all from one seed, with nothing allocated per operation.

use crate::flags::Distribution;

/// A small, fast generator (splitmix64 by Steele, Lea and Flood, 2014). Not for secrets.
#[derive(Clone, Debug)]
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(crate) fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.0)
    }

    /// A number below `n`, which is not 0; the bias of the multiplication is below 2^-32 here.
    pub(crate) fn below(&mut self, n: u64) -> u64 {
        ((u128::from(self.next_u64()) * u128::from(n)) >> 64) as u64
    }

    /// A number in [0, 1).
    pub(crate) fn unit(&mut self) -> f64 {
        (self.next_u64() >> 11) as f64 / (1_u64 << 53) as f64
    }
}

/// Spreads the bits of a number; a permutation of the 64-bit numbers.
fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Zipf's law over `0..n` with exponent 0.99, by rejection-free inversion (Gray et al., "Quickly
/// generating billion-record synthetic databases", 1994), as YCSB has it.
#[derive(Clone, Debug)]
pub(crate) struct Zipf {
    n: u64,
    alpha: f64,
    zeta: f64,
    eta: f64,
    half: f64,
}

impl Zipf {
    const THETA: f64 = 0.99;

    pub(crate) fn new(n: u64) -> Self {
        let zeta = Self::zeta(n);
        let zeta_two = Self::zeta(2);
        let theta = Self::THETA;
        let eta = (1.0 - (2.0 / n as f64).powf(1.0 - theta)) / (1.0 - zeta_two / zeta);
        Self {
            n,
            alpha: 1.0 / (1.0 - theta),
            zeta,
            eta,
            half: 0.5_f64.powf(theta),
        }
    }

    /// The sum of 1/i^theta: exact for the first terms, the integral for the rest.
    fn zeta(n: u64) -> f64 {
        const EXACT: u64 = 100_000;
        let exact: f64 = (1..=n.min(EXACT))
            .map(|i| (i as f64).powf(-Self::THETA))
            .sum();
        if n <= EXACT {
            return exact;
        }
        let power = 1.0 - Self::THETA;
        exact + ((n as f64 + 0.5).powf(power) - (EXACT as f64 + 0.5).powf(power)) / power
    }

    /// 0 is the most frequent.
    pub(crate) fn next(&self, random: &mut Random) -> u64 {
        let u = random.unit();
        let uz = u * self.zeta;
        if uz < 1.0 {
            return 0;
        }
        if uz < 1.0 + self.half {
            return 1.min(self.n - 1);
        }
        let rank = (self.n as f64 * (self.eta * u - self.eta + 1.0).powf(self.alpha)) as u64;
        rank.min(self.n - 1)
    }
}

/// Chooses which of `n` keys comes next.
#[derive(Clone, Debug)]
pub(crate) struct Chooser {
    distribution: Distribution,
    zipf: Option<Zipf>,
}

impl Chooser {
    pub(crate) fn new(distribution: Distribution, n: u64) -> Self {
        let zipf = (distribution != Distribution::Uniform).then(|| Zipf::new(n));
        Self { distribution, zipf }
    }

    /// A number below `n`, which may have grown since `new`.
    pub(crate) fn next(&self, random: &mut Random, n: u64) -> u64 {
        match (&self.zipf, self.distribution) {
            (Some(zipf), Distribution::Zipf) => mix(zipf.next(random)) % n,
            (Some(zipf), Distribution::Latest) => n - 1 - zipf.next(random).min(n - 1),
            _ => random.below(n),
        }
    }
}

/// Numbers `0..n` in an order without pattern, each once: a Feistel network over the next power of
/// four, walked until the result is in range. No memory, any thread can have any part of it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Permutation {
    n: u64,
    half_bits: u32,
    seed: u64,
}

impl Permutation {
    pub(crate) fn new(n: u64, seed: u64) -> Self {
        let bits = u64::BITS - n.saturating_sub(1).leading_zeros();
        Self {
            n,
            half_bits: bits.div_ceil(2).max(1),
            seed,
        }
    }

    pub(crate) fn at(&self, index: u64) -> u64 {
        let mask = (1 << self.half_bits) - 1;
        let mut x = index;
        loop {
            let (mut left, mut right) = (x >> self.half_bits, x & mask);
            for round in 0..4 {
                let f = mix(right ^ self.seed.wrapping_add(round)) & mask;
                (left, right) = (right, left ^ f);
            }
            x = left << self.half_bits | right;
            if x < self.n {
                return x;
            }
        }
    }
}

/// Writes the key of number `i` into `key`: decimal digits with leading zeros, so that the order of
/// numbers is the order of keys.
pub(crate) fn write_key(key: &mut [u8], mut i: u64) {
    for byte in key.iter_mut().rev() {
        *byte = b'0' + (i % 10) as u8;
        i /= 10;
    }
}

/// Writes the key of a number that no put ever uses: between existing keys, so that neither range
/// nor prefix tells that it is missing.
pub(crate) fn write_missing_key(key: &mut Vec<u8>, len: usize, i: u64) {
    key.resize(len, 0);
    write_key(key, i);
    key.push(b'.');
}

/// Values cut from a pool, so that making one costs nothing.
#[derive(Debug)]
pub(crate) struct Values {
    pool: Vec<u8>,
    len: usize,
}

impl Values {
    /// `entropy` is the share of a value that does not compress.
    pub(crate) fn new(len: usize, entropy: f64, seed: u64) -> Self {
        const RUN: usize = 64;
        const POOL: usize = 1 << 20;
        let mut random = Random::new(seed);
        let mut pool = Vec::with_capacity(POOL + len);
        while pool.len() < POOL + len {
            let noise = (RUN as f64 * entropy.clamp(0.0, 1.0)) as usize;
            for i in 0..RUN {
                pool.push(if i < noise {
                    random.next_u64() as u8
                } else {
                    b'v'
                });
            }
        }
        Self { pool, len }
    }

    pub(crate) fn next(&self, random: &mut Random) -> &[u8] {
        let room = (self.pool.len() - self.len) as u64;
        let at = random.below(room + 1) as usize;
        &self.pool[at..at + self.len]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_permutation_has_every_number_once() {
        for n in [1, 2, 3, 10, 1000, 4097] {
            let permutation = Permutation::new(n, 7);
            let mut seen = vec![false; n as usize];
            for i in 0..n {
                let x = permutation.at(i) as usize;
                assert!(!std::mem::replace(&mut seen[x], true), "{x} twice of {n}");
            }
        }
    }

    #[test]
    fn zipf_is_skewed_and_in_range() {
        let (zipf, mut random) = (Zipf::new(1000), Random::new(1));
        let mut counts = [0_u32; 1000];
        for _ in 0..100_000 {
            counts[zipf.next(&mut random) as usize] += 1;
        }
        assert!(counts[0] > 8_000 && counts[0] < 20_000, "{}", counts[0]);
        assert!(counts[0] > counts[10] && counts[10] > counts[500]);
        for n in [1, 2, 3] {
            let zipf = Zipf::new(n);
            assert!((0..1000).all(|_| zipf.next(&mut random) < n));
        }
    }

    #[test]
    fn keys_keep_the_order_of_numbers() {
        let mut keys = Vec::new();
        for i in [0_u64, 9, 10, 99, 123_456] {
            let mut key = [0; 16];
            write_key(&mut key, i);
            keys.push(key);
        }
        assert!(keys.is_sorted());
        let mut missing = Vec::new();
        write_missing_key(&mut missing, 16, 9);
        assert!(missing[..] > keys[1][..] && missing[..] < keys[2][..]);
    }

    #[test]
    fn values_have_their_length() {
        let mut random = Random::new(1);
        for len in [0, 1, 100, 3 << 20] {
            let values = Values::new(len, 0.5, 1);
            for _ in 0..100 {
                assert_eq!(values.next(&mut random).len(), len);
            }
        }
    }
}
