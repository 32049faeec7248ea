//! What clients did and were told, and whether one store that does one thing at a time could have told
//! them so.
//!
//! Every value is written once: it is a number, and bytes that follow from it. Keys live for about a
//! second and are then left alone, so that the history of each is short enough for
//! [`lincheck`](crate::lincheck); one key lives as long as the simulation. At the end every key is read
//! once more, so what was acknowledged and lost is a history that nothing explains.
//!
//! Beside that, the log's positions and the keys' versions are witnesses: what began after something
//! else had ended must not come before it by them. They find most of what goes wrong, and say more
//! about it.

use std::collections::{BTreeMap, BTreeSet};

use firn_engine::SeqNo;

use crate::lincheck::{Call, Map, Register, Value, Verdict, check, check_zones};

/// Steps of a search before it is given up.
const MOST_STEPS: u64 = 400_000;

/// Keys that are checked together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Object {
    /// One key, of an epoch.
    Register(u64, u8),
    /// Keys that are written and read together.
    Map(u64, u8),
    /// The key that lives long.
    Long,
}

/// Keys of a map that are in use.
pub const MAP_KEYS: u8 = 5;

impl Object {
    /// The key in the store; `part` is that of a map.
    pub fn key(self, part: u8) -> Vec<u8> {
        match self {
            Self::Register(epoch, number) => format!("r{epoch:03}.{number}").into_bytes(),
            Self::Map(epoch, number) => format!("m{epoch:03}.{number}/{part}").into_bytes(),
            Self::Long => b"long".to_vec(),
        }
    }
}

/// The bytes of a value: its number, and as many others as follow from it.
pub fn encode(value: Value) -> Vec<u8> {
    let spread = value.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let most = if spread.is_multiple_of(16) { 900 } else { 120 };
    let mut out = value.to_le_bytes().to_vec();
    out.resize(8 + ((spread >> 32) % most) as usize, spread as u8);
    out
}

/// The value with these bytes; `None` if nobody ever wrote them.
pub fn decode(bytes: &[u8]) -> Option<Value> {
    let (number, _) = bytes.split_first_chunk::<8>()?;
    let value = Value::from_le_bytes(*number);
    (encode(value) == bytes).then_some(value)
}

/// A moment at which something began or ended, and where it was in some order.
#[derive(Clone, Copy, Debug)]
struct Witness {
    begin: u64,
    end: u64,
    place: u64,
}

/// What is counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Writes that were acknowledged.
    pub writes: u64,
    /// Reads that were answered.
    pub reads: u64,
    /// Writes of which nobody knows.
    pub unknown: u64,
    /// Calls that were refused.
    pub refused: u64,
}

impl std::ops::AddAssign for Counts {
    fn add_assign(&mut self, other: Self) {
        self.writes += other.writes;
        self.reads += other.reads;
        self.unknown += other.unknown;
        self.refused += other.refused;
    }
}

/// See the module's page.
#[derive(Debug, Default)]
pub struct History {
    now: u64,
    next_value: Value,
    registers: BTreeMap<Object, Vec<Call<Register>>>,
    maps: BTreeMap<Object, Vec<Call<Map>>>,
    /// Which version each value was seen with.
    versions: BTreeMap<Value, SeqNo>,
    /// By key: when it was written or read, and the version.
    keys: BTreeMap<Vec<u8>, Vec<Witness>>,
    /// Writes, and their entries.
    written: Vec<Witness>,
    /// Reads, and up to which entry the node had to be.
    barriers: Vec<Witness>,
    /// Values whose write was refused: nothing was written.
    refused: BTreeSet<Value>,
    /// What was counted.
    pub counts: Counts,
    violations: Vec<String>,
}

impl History {
    /// The next moment.
    pub fn tick(&mut self) -> u64 {
        self.now += 1;
        self.now
    }

    /// A value that nobody ever wrote.
    pub fn fresh(&mut self) -> Value {
        self.next_value += 1;
        self.next_value
    }

    /// Something is wrong at once.
    pub fn violation(&mut self, text: String) {
        if self.violations.len() < 20 {
            self.violations.push(text);
        }
    }

    /// The version that a value was seen with.
    pub fn version_of(&self, value: Value) -> Option<SeqNo> {
        self.versions.get(&value).copied()
    }

    /// A value was written, or read, with this version.
    pub fn saw(&mut self, value: Value, version: SeqNo) {
        let first = *self.versions.entry(value).or_insert(version);
        if first != version {
            self.violation(format!(
                "value {value} had version {first} and has version {version}"
            ));
        }
        if self.refused.contains(&value) {
            self.violation(format!("value {value} is there, and its write was refused"));
        }
    }

    /// The write of a value was refused.
    pub fn refuse(&mut self, value: Value) {
        self.refused.insert(value);
        if self.versions.contains_key(&value) {
            self.violation(format!("value {value} is there, and its write was refused"));
        }
    }

    /// A key had this version at some moment in between.
    pub fn key_was_at(&mut self, key: Vec<u8>, begin: u64, end: u64, version: SeqNo) {
        let place = version.0;
        let witness = Witness { begin, end, place };
        self.keys.entry(key).or_default().push(witness);
    }

    /// A write was acknowledged with this entry.
    pub fn entry_was(&mut self, begin: u64, end: u64, place: u64) {
        self.written.push(Witness { begin, end, place });
    }

    /// A read needed the state up to this entry.
    pub fn barrier_was(&mut self, begin: u64, end: u64, place: u64) {
        self.barriers.push(Witness { begin, end, place });
    }

    /// A call of one key.
    pub fn register(&mut self, object: Object, begin: u64, end: Option<u64>, op: Register) {
        let calls = self.registers.entry(object).or_default();
        calls.push(Call { begin, end, op });
    }

    /// A call of keys together.
    pub fn map(&mut self, object: Object, begin: u64, end: Option<u64>, op: Map) {
        let calls = self.maps.entry(object).or_default();
        calls.push(Call { begin, end, op });
    }

    /// Everything that was ever touched.
    pub fn objects(&self) -> Vec<Object> {
        let registers = self.registers.keys();
        registers.chain(self.maps.keys()).copied().collect()
    }

    /// Reads everything once more by `read`, and decides. Returns what is wrong, and how many
    /// objects were left undecided.
    pub fn finish(
        &mut self,
        mut read: impl FnMut(&[u8]) -> Result<Option<(Vec<u8>, SeqNo)>, String>,
    ) -> (Vec<String>, u64) {
        for object in self.objects() {
            let mut found = Vec::new();
            let parts = match object {
                Object::Map(..) => MAP_KEYS,
                _ => 1,
            };
            let begin = self.tick();
            for part in 0..parts {
                match read(&object.key(part)) {
                    Ok(entry) => found.extend(
                        entry.map(|(bytes, version)| (part, self.take(&bytes, version, object))),
                    ),
                    Err(error) => self.violation(format!("{object:?} cannot be read: {error}")),
                }
            }
            let end = Some(self.tick());
            if let Object::Map(..) = object {
                self.map(object, begin, end, Map::Scan(0, MAP_KEYS, found));
            } else {
                let value = found.first().map_or(0, |(_, value)| *value);
                self.register(object, begin, end, Register::Read(value));
            }
        }
        self.check_witnesses();
        let mut undecided = 0;
        let mut decide =
            |object: Object, verdict: Verdict, violations: &mut Vec<String>| match verdict {
                Verdict::Linearizable => {}
                Verdict::Violation(text) => violations.push(format!("{object:?}: {text}")),
                Verdict::Undecided => undecided += 1,
            };
        for (&object, calls) in &self.registers {
            let verdict = match object {
                Object::Long => check_zones(calls),
                _ => check::<Register>(calls, MOST_STEPS),
            };
            decide(object, verdict, &mut self.violations);
        }
        for (&object, calls) in &self.maps {
            let verdict = check::<Map>(calls, MOST_STEPS);
            decide(object, verdict, &mut self.violations);
        }
        (std::mem::take(&mut self.violations), undecided)
    }

    /// What was found under a key; 0 and a violation if it is nothing that was written.
    pub fn take(&mut self, bytes: &[u8], version: SeqNo, object: Object) -> Value {
        match decode(bytes) {
            Some(value) if value <= self.next_value => {
                self.saw(value, version);
                value
            }
            _ => {
                self.violation(format!("{object:?} holds what nobody wrote: {bytes:?}"));
                0
            }
        }
    }

    fn check_witnesses(&mut self) {
        let mut found = Vec::new();
        for (key, witnesses) in &self.keys {
            if let Some((earlier, later)) = out_of_order(witnesses, witnesses) {
                let key = String::from_utf8_lossy(key);
                found.push(format!(
                    "{key} had version {} until {} and version {} from {} on",
                    earlier.place, earlier.end, later.place, later.begin
                ));
            }
        }
        for (what, later) in [("write", &self.written), ("read", &self.barriers)] {
            if let Some((earlier, later)) = out_of_order(&self.written, later) {
                found.push(format!(
                    "a {what} that began at {} was at entry {}, though entry {} was acknowledged at {}",
                    later.begin, later.place, earlier.place, earlier.end
                ));
            }
        }
        self.violations.extend(found);
    }
}

/// Something that ended before something else began and yet has a greater place.
fn out_of_order(earlier: &[Witness], later: &[Witness]) -> Option<(Witness, Witness)> {
    let mut ended = earlier.to_vec();
    ended.sort_unstable_by_key(|witness| witness.end);
    let mut began = later.to_vec();
    began.sort_unstable_by_key(|witness| witness.begin);
    let mut ended = ended.into_iter().peekable();
    let mut greatest: Option<Witness> = None;
    for witness in began {
        while let Some(done) = ended.next_if(|done| done.end < witness.begin) {
            if greatest.is_none_or(|greatest| greatest.place < done.place) {
                greatest = Some(done);
            }
        }
        if let Some(greatest) = greatest
            && greatest.place > witness.place
        {
            return Some((greatest, witness));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_what_was_written_or_nothing() {
        for value in 1..2000 {
            let mut bytes = encode(value);
            assert_eq!(decode(&bytes), Some(value));
            let len = bytes.len();
            bytes.push(bytes[0] ^ 1);
            assert_eq!(decode(&bytes), None);
            if len > 8 {
                bytes[8] ^= 1;
                assert_eq!(decode(&bytes[..len]), None);
            }
        }
        assert_eq!(decode(b"short"), None);
    }

    #[test]
    fn what_is_lost_refused_or_made_up_is_found() {
        let object = Object::Register(0, 0);
        let history = |is_acknowledged: bool| {
            let mut history = History::default();
            let value = history.fresh();
            let (begin, end) = (history.tick(), history.tick());
            let end = is_acknowledged.then_some(end);
            history.register(object, begin, end, Register::Write(value));
            history
        };
        let finish = |mut history: History, found: Option<Vec<u8>>| {
            let read = |_: &[u8]| Ok(found.clone().map(|bytes| (bytes, SeqNo(9))));
            history.finish(read).0
        };
        assert_eq!(finish(history(true), Some(encode(1))), Vec::<String>::new());
        assert_eq!(finish(history(false), None), Vec::<String>::new());
        assert_eq!(finish(history(true), None).len(), 1);
        assert!(!finish(history(true), Some(b"what?".to_vec())).is_empty());
        let mut refused = history(false);
        refused.refuse(1);
        assert_eq!(finish(refused, Some(encode(1))).len(), 1);
    }

    #[test]
    fn places_follow_time() {
        let witness = |begin, end, place| Witness { begin, end, place };
        let fine = [witness(1, 4, 10), witness(2, 3, 12), witness(5, 6, 12)];
        assert!(out_of_order(&fine, &fine).is_none());
        let bad = [witness(1, 4, 10), witness(5, 6, 9)];
        assert!(out_of_order(&bad, &bad).is_some());
    }
}
