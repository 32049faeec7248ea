//! Decimal fractions as `INCRBYFLOAT` counts them.
//!
//! Redis adds in the 80-bit format of x86 (64 bits of mantissa) and prints with at most 17 digits
//! behind the point, without the zeros at the end; clients compare such texts. Rust has no such
//! type, so [`Float`] holds a mantissa and an exponent and computes through whole numbers of any
//! length, rounding to even where the hardware would. It is slow (microseconds) and used for this one
//! command.

/// Longest text that is read as a number.
const MAX_TEXT: usize = 5 * 1024;
/// Digits behind the point in print.
const DIGITS: u32 = 17;
/// Beyond this power of two there is only infinity.
const MAX_EXPONENT: i64 = 16_384;

/// A number: `mantissa * 2^exponent`. A mantissa that is not 0 has its highest bit set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Float {
    negative: bool,
    mantissa: u64,
    exponent: i64,
}

/// What text may stand for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Parsed {
    /// A number.
    Finite(Float),
    /// Plus or minus infinity.
    Infinite,
}

impl Parsed {
    /// Reads a decimal number. `None`: it is none, or out of range.
    pub fn read(text: &[u8]) -> Option<Self> {
        if text.len() >= MAX_TEXT {
            return None;
        }
        let (negative, rest) = match text {
            [b'-', rest @ ..] => (true, rest),
            [b'+', rest @ ..] => (false, rest),
            rest => (false, rest),
        };
        if rest.eq_ignore_ascii_case(b"inf") || rest.eq_ignore_ascii_case(b"infinity") {
            return Some(Self::Infinite);
        }
        let mut digits = Big::default();
        let (mut scale, mut any, mut behind_point) = (0_i64, false, false);
        let mut at = 0;
        while let Some(&byte) = rest.get(at) {
            match byte {
                b'0'..=b'9' => {
                    digits.multiply_add(10, u32::from(byte - b'0'));
                    any = true;
                    scale -= i64::from(behind_point);
                }
                b'.' if !behind_point => behind_point = true,
                _ => break,
            }
            at += 1;
        }
        if !any {
            return None;
        }
        match &rest[at..] {
            [] => {}
            [b'e' | b'E', exponent @ ..] => {
                let exponent = exponent.strip_prefix(b"+").unwrap_or(exponent);
                let exponent = std::str::from_utf8(exponent).ok()?;
                let plain = exponent.strip_prefix('-').unwrap_or(exponent);
                if plain.is_empty() || !plain.bytes().all(|b| b.is_ascii_digit()) {
                    return None;
                }
                scale += exponent.parse::<i64>().ok().filter(|e| e.abs() < 100_000)?;
            }
            _ => return None,
        }
        if digits.is_zero() {
            return Some(Self::Finite(Float::rounded(negative, &digits, 0, false)));
        }
        if !(-15_000..=5_000).contains(&scale) {
            return None;
        }
        let float = if scale >= 0 {
            for _ in 0..scale {
                digits.multiply_add(10, 0);
            }
            Float::rounded(negative, &digits, 0, false)
        } else {
            let mut divisor = Big::from(1);
            for _ in 0..-scale {
                divisor.multiply_add(10, 0);
            }
            // Enough bits in the quotient to round it.
            let shift = (divisor.bits() + 66).saturating_sub(digits.bits());
            digits.shift_left(shift);
            let (quotient, rest) = digits.divide(&divisor);
            Float::rounded(negative, &quotient, -(shift as i64), !rest.is_zero())
        };
        float.is_finite().then_some(Self::Finite(float))
    }
}

impl Float {
    /// `whole * 2^exponent` and a little more if `sticky`, rounded to 64 bits.
    fn rounded(negative: bool, whole: &Big, exponent: i64, sticky: bool) -> Self {
        let bits = whole.bits();
        if bits == 0 {
            return Self {
                negative,
                mantissa: 0,
                exponent: 0,
            };
        }
        if bits <= 64 {
            let mantissa = whole.window(0) << (64 - bits);
            return Self {
                negative,
                mantissa,
                exponent: exponent - (64 - bits as i64),
            };
        }
        let dropped = bits - 64;
        let mut mantissa = whole.window(dropped);
        let mut exponent = exponent + dropped as i64;
        let half = whole.bit(dropped - 1);
        let below = sticky || whole.any_below(dropped - 1);
        if half && (below || mantissa & 1 == 1) {
            mantissa = match mantissa.checked_add(1) {
                Some(sum) => sum,
                None => {
                    exponent += 1;
                    1 << 63
                }
            };
        }
        Self {
            negative,
            mantissa,
            exponent,
        }
    }

    fn is_finite(self) -> bool {
        self.mantissa == 0 || self.exponent + 64 <= MAX_EXPONENT
    }

    /// The sum; `None` if it is infinite.
    pub fn plus(self, other: Self) -> Option<Self> {
        if self.mantissa == 0 {
            return Some(other);
        }
        if other.mantissa == 0 {
            return Some(self);
        }
        let low = self.exponent.min(other.exponent);
        let widened = |float: Self| {
            let mut whole = Big::from(float.mantissa);
            whole.shift_left((float.exponent - low) as usize);
            whole
        };
        let (a, b) = (widened(self), widened(other));
        let sum = if self.negative == other.negative {
            Self::rounded(self.negative, &a.plus(&b), low, false)
        } else if a.at_least(&b) {
            let difference = a.minus(&b);
            let negative = self.negative && !difference.is_zero();
            Self::rounded(negative, &difference, low, false)
        } else {
            Self::rounded(other.negative, &b.minus(&a), low, false)
        };
        sum.is_finite().then_some(sum)
    }

    /// Up to 17 digits behind the point, and none that say nothing.
    pub fn print(self) -> String {
        let mut whole = Big::from(self.mantissa);
        let mut digits = if self.exponent >= 0 {
            whole.shift_left(self.exponent as usize);
            let mut text = whole.decimal();
            text.push_str(&"0".repeat(DIGITS as usize));
            text
        } else {
            for _ in 0..DIGITS {
                whole.multiply_add(10, 0);
            }
            let dropped = -self.exponent as usize;
            let mut scaled = whole.shifted_right(dropped);
            let half = whole.bit(dropped - 1);
            if half && (whole.any_below(dropped - 1) || scaled.bit(0)) {
                scaled.multiply_add(1, 1);
            }
            scaled.decimal()
        };
        let behind = DIGITS as usize;
        if digits.len() <= behind {
            digits = "0".repeat(behind + 1 - digits.len()) + &digits;
        }
        digits.insert(digits.len() - behind, '.');
        let text = digits.trim_end_matches('0').trim_end_matches('.');
        if self.negative && text != "0" {
            format!("-{text}")
        } else {
            text.to_owned()
        }
    }
}

/// A whole number of any length, the lowest 32 bits first, without zeros at the top.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Big(Vec<u32>);

impl From<u64> for Big {
    fn from(value: u64) -> Self {
        Self(vec![value as u32, (value >> 32) as u32]).trimmed()
    }
}

impl Big {
    fn trimmed(mut self) -> Self {
        while self.0.last() == Some(&0) {
            self.0.pop();
        }
        self
    }

    fn is_zero(&self) -> bool {
        self.0.is_empty()
    }

    fn bits(&self) -> usize {
        match self.0.last() {
            Some(top) => self.0.len() * 32 - top.leading_zeros() as usize,
            None => 0,
        }
    }

    fn bit(&self, at: usize) -> bool {
        self.0
            .get(at / 32)
            .is_some_and(|word| word >> (at % 32) & 1 == 1)
    }

    fn any_below(&self, at: usize) -> bool {
        (0..at).any(|i| self.bit(i))
    }

    /// The 64 bits from `at` on.
    fn window(&self, at: usize) -> u64 {
        (0..64).fold(0, |value, i| value | u64::from(self.bit(at + i)) << i)
    }

    fn multiply_add(&mut self, factor: u32, add: u32) {
        let mut carry = u64::from(add);
        for word in &mut self.0 {
            carry += u64::from(*word) * u64::from(factor);
            *word = carry as u32;
            carry >>= 32;
        }
        if carry > 0 {
            self.0.push(carry as u32);
        }
    }

    fn shift_left(&mut self, by: usize) {
        if self.is_zero() {
            return;
        }
        self.multiply_add(1 << (by % 32), 0);
        self.0.splice(0..0, std::iter::repeat_n(0, by / 32));
    }

    fn shifted_right(&self, by: usize) -> Self {
        let words = self.0.get(by / 32..).unwrap_or_default();
        let within = by % 32;
        let shifted = words.iter().enumerate().map(|(i, &low)| {
            let high = words.get(i + 1).copied().unwrap_or(0);
            ((u64::from(high) << 32 | u64::from(low)) >> within) as u32
        });
        Self(shifted.collect()).trimmed()
    }

    fn at_least(&self, other: &Self) -> bool {
        let order = self.0.len().cmp(&other.0.len());
        order
            .then_with(|| self.0.iter().rev().cmp(other.0.iter().rev()))
            .is_ge()
    }

    fn plus(&self, other: &Self) -> Self {
        let (long, short) = if self.at_least(other) {
            (self, other)
        } else {
            (other, self)
        };
        let mut sum = long.clone();
        let mut carry = 0;
        for (i, word) in sum.0.iter_mut().enumerate() {
            carry += u64::from(*word) + u64::from(short.0.get(i).copied().unwrap_or(0));
            *word = carry as u32;
            carry >>= 32;
        }
        if carry > 0 {
            sum.0.push(carry as u32);
        }
        sum
    }

    /// The difference to a smaller number.
    fn minus(&self, smaller: &Self) -> Self {
        let mut difference = self.clone();
        difference.subtract(smaller);
        difference
    }

    fn subtract(&mut self, smaller: &Self) {
        let mut borrow = false;
        for (i, word) in self.0.iter_mut().enumerate() {
            let take = smaller.0.get(i).copied().unwrap_or(0);
            let (once, first) = word.overflowing_sub(take);
            let (twice, second) = once.overflowing_sub(u32::from(borrow));
            *word = twice;
            borrow = first || second;
        }
        while self.0.last() == Some(&0) {
            self.0.pop();
        }
    }

    /// Quotient and remainder. The time goes with the length of the quotient.
    fn divide(&self, divisor: &Self) -> (Self, Self) {
        let steps = (self.bits() + 1).saturating_sub(divisor.bits());
        // What is left above has fewer bits than the divisor.
        let mut rest = self.shifted_right(steps);
        let mut quotient = vec![0_u32; steps.div_ceil(32)];
        for at in (0..steps).rev() {
            rest.multiply_add(2, u32::from(self.bit(at)));
            if rest.at_least(divisor) {
                rest.subtract(divisor);
                quotient[at / 32] |= 1 << (at % 32);
            }
        }
        (Self(quotient).trimmed(), rest)
    }

    fn decimal(&self) -> String {
        let mut words = self.0.clone();
        let mut groups = Vec::new();
        while !words.is_empty() {
            let mut rest = 0_u64;
            for word in words.iter_mut().rev() {
                let value = rest << 32 | u64::from(*word);
                *word = (value / 1_000_000_000) as u32;
                rest = value % 1_000_000_000;
            }
            groups.push(rest);
            while words.last() == Some(&0) {
                words.pop();
            }
        }
        let mut text = groups.pop().unwrap_or(0).to_string();
        for group in groups.iter().rev() {
            text.push_str(&format!("{group:09}"));
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn read(text: &str) -> Float {
        match Parsed::read(text.as_bytes()) {
            Some(Parsed::Finite(float)) => float,
            other => panic!("{text}: {other:?}"),
        }
    }

    fn sum(a: &str, b: &str) -> String {
        read(a).plus(read(b)).unwrap().print()
    }

    #[test]
    fn sums_look_as_in_redis() {
        for (a, b, expected) in [
            ("0.1", "0.2", "0.3"),
            ("10.50", "0.1", "10.6"),
            ("5.0e3", "2.0e2", "5200"),
            ("3", "1.1", "4.1"),
            ("1.2", "-1.2", "0"),
            ("0", "-0.00000000000000001", "-0.00000000000000001"),
            ("1", "0.000000000000000001", "1"),
            ("-5", "3.25", "-1.75"),
            ("17179869184", "1.5", "17179869185.5"),
            ("1e20", "0.5", "100000000000000000000"),
            ("0.", ".5", "0.5"),
        ] {
            assert_eq!(sum(a, b), expected, "{a} + {b}");
        }
    }

    #[test]
    fn what_is_no_number_is_refused() {
        for text in [
            "", "-", ".", "1e", "1e+", "e1", " 1", "1 ", "0x10", "nan", "1.2.3", "1e99999",
        ] {
            assert_eq!(Parsed::read(text.as_bytes()), None, "{text}");
        }
        assert_eq!(Parsed::read(&[b'1'; MAX_TEXT]), None);
        assert_eq!(Parsed::read(b"-inf"), Some(Parsed::Infinite));
        let huge = read("1e4932");
        assert_eq!(huge.plus(huge), None);
        assert_eq!(huge.print().len(), 4933);
    }

    proptest! {
        #[test]
        fn whole_numbers_are_exact(a in any::<i64>(), b in any::<i64>()) {
            let whole = i128::from(a) + i128::from(b);
            prop_assume!(whole.unsigned_abs() < 1 << 64);
            prop_assert_eq!(sum(&a.to_string(), &b.to_string()), whole.to_string());
        }

        #[test]
        fn doubles_are_read_and_printed_closely(value in -1e15..1e15_f64) {
            let printed = read(&format!("{value:e}")).print();
            let back: f64 = printed.parse().unwrap();
            prop_assert!((back - value).abs() <= value.abs() * 1e-15 + 1e-17, "{} {}", value, printed);
        }

        #[test]
        fn any_bytes_are_taken(text in "[0-9.eE+-]{0,20}") {
            if let Some(Parsed::Finite(float)) = Parsed::read(text.as_bytes()) {
                let _ = float.print();
            }
        }
    }
}
