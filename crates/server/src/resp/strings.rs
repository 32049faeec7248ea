//! Commands on string values.

use crate::resp::number::Parsed;
use crate::resp::parse::{Args, integer};
use crate::resp::session::{Found, NOT_AN_INTEGER, SYNTAX, Session, Stop, refuse, refuse_with};
use crate::resp::shared::notify;

type Done = Result<(), Stop>;

const TOO_LONG: Stop = refuse("ERR string exceeds maximum allowed size (proto-max-bulk-len)");

/// Reads a whole number.
pub(crate) fn int(text: &[u8]) -> Result<i64, Stop> {
    integer(text).ok_or(NOT_AN_INTEGER)
}

// ---- expiry -------------------------------------------------------------------------------------

/// How an expiry is written: its unit, and whether it counts from now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Unit {
    pub(crate) seconds: bool,
    pub(crate) relative: bool,
}

impl Unit {
    /// The unit of an option.
    fn of(option: &[u8]) -> Option<Self> {
        let (seconds, relative) = match option.to_ascii_lowercase().as_slice() {
            b"ex" => (true, true),
            b"px" => (false, true),
            b"exat" => (true, false),
            b"pxat" => (false, false),
            _ => return None,
        };
        Some(Self { seconds, relative })
    }

    /// The moment in Unix milliseconds that a positive number means.
    pub(crate) fn at(self, text: &[u8], now_ms: u64, command: &str) -> Result<u64, Stop> {
        let invalid = || refuse_with(format!("ERR invalid expire time in '{command}' command"));
        let value = int(text)?;
        if value <= 0 {
            return Err(invalid());
        }
        let ms = if self.seconds {
            value.checked_mul(1_000)
        } else {
            Some(value)
        };
        let base = if self.relative { now_ms as i64 } else { 0 };
        let at = ms.and_then(|ms| ms.checked_add(base)).ok_or_else(invalid)?;
        Ok(at as u64)
    }
}

/// What a key must be for a write to happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Condition<'a> {
    Missing,
    Present,
    Equal(&'a [u8]),
    NotEqual(&'a [u8]),
    Digest(&'a [u8]),
    NotDigest(&'a [u8]),
}

impl<'a> Condition<'a> {
    /// Reads one that compares.
    fn comparing(option: &[u8], operand: &'a [u8]) -> Option<Self> {
        Some(match option.to_ascii_lowercase().as_slice() {
            b"ifeq" => Self::Equal(operand),
            b"ifne" => Self::NotEqual(operand),
            b"ifdeq" => Self::Digest(operand),
            b"ifdne" => Self::NotDigest(operand),
            _ => return None,
        })
    }

    fn holds(self, found: Option<&Found>) -> bool {
        match (self, found) {
            (Self::Missing, found) => found.is_none(),
            (Self::Present, found) => found.is_some(),
            (Self::Equal(_) | Self::Digest(_), None) => false,
            (Self::NotEqual(_) | Self::NotDigest(_), None) => true,
            (Self::Equal(value), Some(found)) => *found.value == *value,
            (Self::NotEqual(value), Some(found)) => *found.value != *value,
            (Self::Digest(digest), Some(found)) => {
                digest.eq_ignore_ascii_case(digest_of(&found.value).as_bytes())
            }
            (Self::NotDigest(digest), Some(found)) => {
                !digest.eq_ignore_ascii_case(digest_of(&found.value).as_bytes())
            }
        }
    }
}

fn digest_of(value: &[u8]) -> String {
    format!("{:016x}", xxhash_rust::xxh3::xxh3_64(value))
}

/// The options of `SET` and its kin.
#[derive(Clone, Copy, Debug, Default)]
struct SetOptions<'a> {
    condition: Option<Condition<'a>>,
    get: bool,
    keep_ttl: bool,
    persist: bool,
    expiry: Option<(Unit, &'a [u8])>,
}

/// Which of them a command takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Takes {
    Set,
    GetEx,
    MSetEx,
}

impl<'a> SetOptions<'a> {
    fn read(args: Args<'a>, takes: Takes) -> Result<Self, Stop> {
        let mut options = Self::default();
        let mut at = 0;
        while at < args.len() {
            let option = args.get(at);
            let has_next = at + 1 < args.len();
            let lower = option.to_ascii_lowercase();
            // The same again is no contradiction.
            let unit = Unit::of(option).filter(|unit| {
                let same = options.expiry.is_none_or(|(given, _)| given == *unit);
                has_next && same && !options.keep_ttl && !options.persist
            });
            let takes_condition = |wanted: Option<Condition<'_>>| {
                takes != Takes::GetEx
                    && (options.condition.is_none() || options.condition == wanted)
            };
            match lower.as_slice() {
                b"nx" if takes_condition(Some(Condition::Missing)) => {
                    options.condition = Some(Condition::Missing);
                }
                b"xx" if takes_condition(Some(Condition::Present)) => {
                    options.condition = Some(Condition::Present);
                }
                b"get" if takes == Takes::Set => options.get = true,
                b"keepttl" if takes != Takes::GetEx && options.expiry.is_none() => {
                    options.keep_ttl = true
                }
                b"persist" if takes == Takes::GetEx && options.expiry.is_none() => {
                    options.persist = true
                }
                _ if unit.is_some() => {
                    options.expiry = unit.map(|unit| (unit, args.get(at + 1)));
                    at += 1;
                }
                _ if has_next && takes == Takes::Set && takes_condition(None) => {
                    let condition = Condition::comparing(option, args.get(at + 1)).ok_or(SYNTAX)?;
                    options.condition = Some(condition);
                    at += 1;
                }
                _ => return Err(SYNTAX),
            }
            at += 1;
        }
        Ok(options)
    }

    fn expires_at(&self, s: &Session, command: &str) -> Result<Option<u64>, Stop> {
        match self.expiry {
            Some((unit, text)) => unit.at(text, s.now_ms(), command).map(Some),
            None => Ok(None),
        }
    }

    /// Whether it can be written without a look at what is there.
    fn is_blind(&self) -> bool {
        self.condition.is_none() && !self.get && !self.keep_ttl
    }
}

// ---- set ----------------------------------------------------------------------------------------

fn set_events(s: &mut Session, key: &[u8], expires: bool) {
    s.event(notify::STRING, "set", key);
    if expires {
        s.event(notify::GENERIC, "expire", key);
    }
}

fn blind_set(s: &mut Session, key: &[u8], value: &[u8], expires_at: Option<u64>) -> Done {
    s.blind_put(key, value, expires_at)?;
    s.joined_run();
    set_events(s, key, expires_at.is_some());
    s.out.ok();
    Ok(())
}

pub(crate) fn set(s: &mut Session, args: Args<'_>) -> Done {
    let (key, value) = (args.get(1), args.get(2));
    if args.len() == 3 {
        return blind_set(s, key, value, None);
    }
    let options = SetOptions::read(args.from(3), Takes::Set)?;
    let expires_at = options.expires_at(s, "set")?;
    if options.is_blind() {
        return blind_set(s, key, value, expires_at);
    }
    s.need_lock()?;
    let found = s.fetch(key)?;
    let holds = options.condition.is_none_or(|c| c.holds(found.as_ref()));
    if options.get {
        s.out.bulk_or_null(found.as_ref().map(|f| &*f.value));
    }
    if holds {
        let kept = found
            .as_ref()
            .and_then(|f| f.expires_at_ms)
            .filter(|_| options.keep_ttl);
        s.put(key, value, expires_at.or(kept))?;
        set_events(s, key, expires_at.is_some());
    }
    if options.get {
        // Said before it was overwritten.
    } else if holds {
        s.out.ok();
    } else {
        s.out.null();
    }
    Ok(())
}

pub(crate) fn setnx(s: &mut Session, args: Args<'_>) -> Done {
    let (key, value) = (args.get(1), args.get(2));
    let free = s.fetch(key)?.is_none();
    if free {
        s.put(key, value, None)?;
        set_events(s, key, false);
    }
    s.out.int(i64::from(free));
    Ok(())
}

fn set_expiring(s: &mut Session, args: Args<'_>, seconds: bool, command: &str) -> Done {
    let unit = Unit {
        seconds,
        relative: true,
    };
    let expires_at = unit.at(args.get(2), s.now_ms(), command)?;
    blind_set(s, args.get(1), args.get(3), Some(expires_at))
}

pub(crate) fn setex(s: &mut Session, args: Args<'_>) -> Done {
    set_expiring(s, args, true, "setex")
}

pub(crate) fn psetex(s: &mut Session, args: Args<'_>) -> Done {
    set_expiring(s, args, false, "psetex")
}

fn pairs_of(args: Args<'_>, command: &str) -> Result<usize, Stop> {
    if args.len() % 2 == 1 {
        return Err(refuse_with(format!(
            "ERR wrong number of arguments for '{command}' command"
        )));
    }
    Ok(args.len() / 2)
}

pub(crate) fn mset(s: &mut Session, args: Args<'_>) -> Done {
    let pairs = args.from(1);
    let count = pairs_of(pairs, "mset")?;
    for i in 0..count {
        s.check_size(pairs.get(2 * i), pairs.get(2 * i + 1).len())?;
    }
    for i in 0..count {
        let key = pairs.get(2 * i);
        s.blind_put(key, pairs.get(2 * i + 1), None)?;
        s.event(notify::STRING, "set", key);
    }
    s.joined_run();
    s.out.ok();
    Ok(())
}

pub(crate) fn msetnx(s: &mut Session, args: Args<'_>) -> Done {
    let pairs = args.from(1);
    let count = pairs_of(pairs, "msetnx")?;
    let mut free = true;
    for i in 0..count {
        if s.fetch(pairs.get(2 * i))?.is_some() {
            free = false;
            break;
        }
    }
    if free {
        for i in 0..count {
            let key = pairs.get(2 * i);
            s.put(key, pairs.get(2 * i + 1), None)?;
            s.event(notify::STRING, "set", key);
        }
    }
    s.out.int(i64::from(free));
    Ok(())
}

pub(crate) fn msetex(s: &mut Session, args: Args<'_>) -> Done {
    let count = int(args.get(1))?;
    let count = match usize::try_from(count) {
        Ok(count) if count > 0 => count,
        _ => return Err(refuse("ERR invalid numkeys value")),
    };
    if count > (args.len() - 2) / 2 {
        return Err(refuse("ERR wrong number of key-value pairs"));
    }
    let options = SetOptions::read(args.from(2 + 2 * count), Takes::MSetEx)?;
    let expires_at = options.expires_at(s, "msetex")?;
    let mut kept = Vec::with_capacity(count);
    let mut holds = true;
    for i in 0..count {
        let found = s.fetch(args.get(2 + 2 * i))?;
        holds &= options.condition.is_none_or(|c| c.holds(found.as_ref()));
        kept.push(
            found
                .and_then(|f| f.expires_at_ms)
                .filter(|_| options.keep_ttl),
        );
    }
    if holds {
        for (i, kept) in kept.into_iter().enumerate() {
            let key = args.get(2 + 2 * i);
            s.put(key, args.get(3 + 2 * i), expires_at.or(kept))?;
            set_events(s, key, expires_at.is_some());
        }
    }
    s.out.int(i64::from(holds));
    Ok(())
}

// ---- get ----------------------------------------------------------------------------------------

pub(crate) fn get(s: &mut Session, args: Args<'_>) -> Done {
    let found = match s.found_ahead(args.get(1)) {
        Some(found) => found,
        None => s.view(args.get(1))?,
    };
    s.out.bulk_or_null(found.as_ref().map(|f| &*f.value));
    Ok(())
}

pub(crate) fn mget(s: &mut Session, args: Args<'_>) -> Done {
    /// Beyond this many keys it is work for another thread.
    const MANY: usize = 64;
    let keys = args.from(1);
    let most = s.shared.max_request;
    let before = s.out.bytes.len();
    let check = move |s: &Session| {
        if s.out.bytes.len() - before > most {
            return Err(refuse_with(format!(
                "ERR a reply of MGET has at most {most} bytes: ask for fewer keys"
            )));
        }
        Ok(())
    };
    if s.overlay.is_some() {
        s.out.array(keys.len());
        for key in keys.iter() {
            get_one(s, key)?;
            check(s)?;
        }
        return Ok(());
    }
    s.need_settled()?;
    if keys.len() > MANY {
        s.need_thread()?;
    }
    // At one instant.
    let (snapshot, ns) = {
        let (db, ns) = s.service().pinned(&s.ns)?;
        (db.snapshot(), ns)
    };
    s.out.array(keys.len());
    for key in keys.iter() {
        s.check_size(key, 0)?;
        let entry = snapshot.get_entry(&ns, key)?;
        s.out.bulk_or_null(entry.as_ref().map(|e| &*e.value));
        check(s)?;
    }
    Ok(())
}

fn get_one(s: &mut Session, key: &[u8]) -> Done {
    let found = s.fetch(key)?;
    s.out.bulk_or_null(found.as_ref().map(|f| &*f.value));
    Ok(())
}

pub(crate) fn getset(s: &mut Session, args: Args<'_>) -> Done {
    let found = s.fetch(args.get(1))?;
    s.out.bulk_or_null(found.as_ref().map(|f| &*f.value));
    s.put(args.get(1), args.get(2), None)?;
    set_events(s, args.get(1), false);
    Ok(())
}

pub(crate) fn getdel(s: &mut Session, args: Args<'_>) -> Done {
    let found = s.fetch(args.get(1))?;
    s.out.bulk_or_null(found.as_ref().map(|f| &*f.value));
    if found.is_some() {
        s.delete(args.get(1))?;
        s.event(notify::GENERIC, "del", args.get(1));
    }
    Ok(())
}

pub(crate) fn getex(s: &mut Session, args: Args<'_>) -> Done {
    let key = args.get(1);
    let options = SetOptions::read(args.from(2), Takes::GetEx)?;
    let Some(found) = s.fetch(key)? else {
        s.out.null();
        return Ok(());
    };
    let expires_at = options.expires_at(s, "getex")?;
    s.out.bulk_or_null(Some(&found.value));
    let now = s.now_ms();
    match expires_at {
        Some(at) if at <= now => {
            s.delete(key)?;
            s.event(notify::GENERIC, "del", key);
        }
        Some(at) => {
            s.put(key, &found.value, Some(at))?;
            s.event(notify::GENERIC, "expire", key);
        }
        None if options.persist && found.expires_at_ms.is_some() => {
            s.put(key, &found.value, None)?;
            s.event(notify::GENERIC, "persist", key);
        }
        None => {}
    }
    Ok(())
}

pub(crate) fn strlen(s: &mut Session, args: Args<'_>) -> Done {
    let len = s.view(args.get(1))?.map_or(0, |f| f.value.len());
    s.out.count(len);
    Ok(())
}

pub(crate) fn getrange(s: &mut Session, args: Args<'_>) -> Done {
    let (start, end) = (int(args.get(2))?, int(args.get(3))?);
    let found = s.view(args.get(1))?;
    let value = found.as_ref().map_or(&[][..], |f| &f.value);
    s.out.bulk_or_null(Some(part_of(value, start, end)));
    Ok(())
}

/// From start to end, both included; negative ones count from the end.
fn part_of(value: &[u8], start: i64, end: i64) -> &[u8] {
    let len = value.len() as i64;
    if start < 0 && end < 0 && start > end {
        return &[];
    }
    let from = |at: i64| {
        if at < 0 {
            (at.saturating_add(len)).max(0)
        } else {
            at
        }
    };
    let (start, end) = (from(start), from(end).min(len - 1));
    if start > end || len == 0 {
        return &[];
    }
    &value[start as usize..=end as usize]
}

// ---- change -------------------------------------------------------------------------------------

fn length(s: &Session, len: usize) -> Done {
    if len > s.shared.max_bulk {
        Err(TOO_LONG)
    } else {
        Ok(())
    }
}

pub(crate) fn append(s: &mut Session, args: Args<'_>) -> Done {
    let (key, more) = (args.get(1), args.get(2));
    let found = s.fetch(key)?;
    let (mut value, expires_at) = match found {
        Some(found) => (found.value.into_vec(), found.expires_at_ms),
        None => (Vec::new(), None),
    };
    length(s, value.len() + more.len())?;
    value.extend_from_slice(more);
    s.put(key, &value, expires_at)?;
    s.event(notify::STRING, "append", key);
    s.out.count(value.len());
    Ok(())
}

pub(crate) fn setrange(s: &mut Session, args: Args<'_>) -> Done {
    let (key, patch) = (args.get(1), args.get(3));
    let offset = int(args.get(2))?;
    let Ok(offset) = usize::try_from(offset) else {
        return Err(refuse("ERR offset is out of range"));
    };
    let found = s.fetch(key)?;
    if patch.is_empty() {
        s.out.count(found.map_or(0, |f| f.value.len()));
        return Ok(());
    }
    let end = offset.saturating_add(patch.len());
    length(s, end)?;
    let (mut value, expires_at) = match found {
        Some(found) => (found.value.into_vec(), found.expires_at_ms),
        None => (Vec::new(), None),
    };
    if value.len() < end {
        value.resize(end, 0);
    }
    value[offset..end].copy_from_slice(patch);
    s.put(key, &value, expires_at)?;
    s.event(notify::STRING, "setrange", key);
    s.out.count(value.len());
    Ok(())
}

fn add(s: &mut Session, key: &[u8], by: i64) -> Done {
    let found = s.fetch(key)?;
    let (old, expires_at) = match &found {
        Some(found) => (int(&found.value)?, found.expires_at_ms),
        None => (0, None),
    };
    let Some(new) = old.checked_add(by) else {
        return Err(refuse("ERR increment or decrement would overflow"));
    };
    let mut text = [0; 20];
    let mut rest = &mut text[..];
    // Twenty bytes hold every number of 64 bits.
    let _ = std::io::Write::write_fmt(&mut rest, format_args!("{new}"));
    let len = 20 - rest.len();
    s.put(key, &text[..len], expires_at)?;
    s.event(notify::STRING, "incrby", key);
    s.out.int(new);
    Ok(())
}

pub(crate) fn incr(s: &mut Session, args: Args<'_>) -> Done {
    add(s, args.get(1), 1)
}

pub(crate) fn decr(s: &mut Session, args: Args<'_>) -> Done {
    add(s, args.get(1), -1)
}

pub(crate) fn incrby(s: &mut Session, args: Args<'_>) -> Done {
    add(s, args.get(1), int(args.get(2))?)
}

pub(crate) fn decrby(s: &mut Session, args: Args<'_>) -> Done {
    match int(args.get(2))?.checked_neg() {
        Some(by) => add(s, args.get(1), by),
        None => Err(refuse("ERR decrement would overflow")),
    }
}

pub(crate) fn incrbyfloat(s: &mut Session, args: Args<'_>) -> Done {
    const NOT_A_FLOAT: Stop = refuse("ERR value is not a valid float");
    const INFINITE: Stop = refuse("ERR increment would produce NaN or Infinity");
    let key = args.get(1);
    let found = s.fetch(key)?;
    let old = match &found {
        Some(found) => Parsed::read(&found.value),
        None => Parsed::read(b"0"),
    };
    let (Some(old), Some(by)) = (old, Parsed::read(args.get(2))) else {
        return Err(NOT_A_FLOAT);
    };
    let (Parsed::Finite(old), Parsed::Finite(by)) = (old, by) else {
        return Err(INFINITE);
    };
    let sum = old.plus(by).ok_or(INFINITE)?.print();
    let expires_at = found.and_then(|f| f.expires_at_ms);
    s.put(key, sum.as_bytes(), expires_at)?;
    s.event(notify::STRING, "incrbyfloat", key);
    s.out.bulk(sum.as_bytes());
    Ok(())
}

// ---- compare ------------------------------------------------------------------------------------

fn delete_if(s: &mut Session, key: &[u8], condition: Option<Condition<'_>>) -> Done {
    let found = s.fetch(key)?;
    let holds = found.is_some() && condition.is_none_or(|c| c.holds(found.as_ref()));
    if holds {
        s.delete(key)?;
        s.event(notify::GENERIC, "del", key);
    }
    s.out.int(i64::from(holds));
    Ok(())
}

pub(crate) fn delifeq(s: &mut Session, args: Args<'_>) -> Done {
    delete_if(s, args.get(1), Some(Condition::Equal(args.get(2))))
}

pub(crate) fn delex(s: &mut Session, args: Args<'_>) -> Done {
    let condition = match args.len() {
        2 => None,
        4 => Some(Condition::comparing(args.get(2), args.get(3)).ok_or(SYNTAX)?),
        _ => return Err(refuse("ERR wrong number of arguments for 'delex' command")),
    };
    delete_if(s, args.get(1), condition)
}

pub(crate) fn digest(s: &mut Session, args: Args<'_>) -> Done {
    let digest = s.view(args.get(1))?.map(|f| digest_of(&f.value));
    s.out.bulk_or_null(digest.as_deref().map(str::as_bytes));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_those_of_redis() {
        for (start, end, expected) in [
            (0, -1, "This is"),
            (0, 3, "This"),
            (-2, -1, "is"),
            (-1, -2, ""),
            (5, 100, "is"),
            (7, 9, ""),
            (i64::MIN, i64::MAX, "This is"),
            (-100, 1, "Th"),
        ] {
            let part = part_of(b"This is", start, end);
            assert_eq!(std::str::from_utf8(part), Ok(expected), "{start} {end}");
        }
        assert_eq!(part_of(b"", 0, -1), b"");
    }
}
