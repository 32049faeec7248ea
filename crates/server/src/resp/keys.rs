//! Commands on keys, whatever their values: existence, expiry, names, walks, the whole database.

use std::collections::BTreeSet;
use std::ops::Bound;

use firn_engine::key::prefix_end;
use firn_engine::{Namespace, ScanOptions};

use crate::resp::parse::Args;
use crate::resp::session::{NOT_AN_INTEGER, SYNTAX, Session, Slot, Stop, refuse, refuse_with};
use crate::resp::shared::{DATABASES, Shared, notify};
use crate::resp::strings::{Unit, int};
use crate::resp::{dump, glob};

type Done = Result<(), Stop>;

const NO_SUCH_KEY: Stop = refuse("ERR no such key");
/// `DBSIZE` counts exactly where there are about this many keys or fewer.
const EXACT_COUNT: u64 = 1_000_000;

// ---- existence ----------------------------------------------------------------------------------

pub(crate) fn del(s: &mut Session, args: Args<'_>) -> Done {
    let mut seen = BTreeSet::new();
    let mut deleted = 0;
    for key in args.from(1).iter() {
        if args.len() > 2 && !seen.insert(key) {
            continue;
        }
        if s.fetch(key)?.is_some() {
            s.delete(key)?;
            s.event(notify::GENERIC, "del", key);
            deleted += 1;
        }
    }
    s.out.int(deleted);
    Ok(())
}

pub(crate) fn exists(s: &mut Session, args: Args<'_>) -> Done {
    let mut count = 0;
    for key in args.from(1).iter() {
        count += i64::from(s.view(key)?.is_some());
    }
    s.out.int(count);
    Ok(())
}

pub(crate) fn type_of(s: &mut Session, args: Args<'_>) -> Done {
    let exists = s.view(args.get(1))?.is_some();
    s.out.simple(if exists { "string" } else { "none" });
    Ok(())
}

// ---- expiry -------------------------------------------------------------------------------------

/// The conditions of `EXPIRE` and its kin.
#[derive(Clone, Copy, Debug, Default)]
struct ExpireOptions {
    nx: bool,
    xx: bool,
    gt: bool,
    lt: bool,
}

impl ExpireOptions {
    fn read(args: Args<'_>) -> Result<Self, Stop> {
        let mut options = Self::default();
        for option in args.iter() {
            match option.to_ascii_lowercase().as_slice() {
                b"nx" => options.nx = true,
                b"xx" => options.xx = true,
                b"gt" => options.gt = true,
                b"lt" => options.lt = true,
                _ => {
                    let option = String::from_utf8_lossy(option);
                    return Err(refuse_with(format!("ERR Unsupported option {option}")));
                }
            }
        }
        if options.nx && (options.xx || options.gt || options.lt) {
            return Err(refuse(
                "ERR NX and XX, GT or LT options at the same time are not compatible",
            ));
        }
        if options.gt && options.lt {
            return Err(refuse(
                "ERR GT and LT options at the same time are not compatible",
            ));
        }
        Ok(options)
    }

    /// A key without an expiry counts as one that expires after all others.
    fn allow(self, old: Option<u64>, new: i128) -> bool {
        match old {
            None => !self.xx && !self.gt,
            Some(old) => {
                let old = i128::from(old);
                !self.nx && (!self.gt || new > old) && (!self.lt || new < old)
            }
        }
    }
}

fn expire_with(s: &mut Session, args: Args<'_>, unit: Unit, command: &str) -> Done {
    let options = ExpireOptions::read(args.from(3))?;
    let value = int(args.get(2))?;
    let now = s.now_ms();
    let ms = if unit.seconds {
        value.checked_mul(1_000)
    } else {
        Some(value)
    };
    let base = if unit.relative { now as i64 } else { 0 };
    let Some(at) = ms.and_then(|ms| ms.checked_add(base)) else {
        return Err(refuse_with(format!(
            "ERR invalid expire time in '{command}' command"
        )));
    };
    let key = args.get(1);
    let changed = match s.fetch(key)? {
        Some(found) if options.allow(found.expires_at_ms, i128::from(at)) => {
            if at <= now as i64 {
                s.delete(key)?;
                s.event(notify::GENERIC, "del", key);
            } else {
                s.put(key, &found.value, Some(at as u64))?;
                s.event(notify::GENERIC, "expire", key);
            }
            true
        }
        _ => false,
    };
    s.out.int(i64::from(changed));
    Ok(())
}

pub(crate) fn expire(s: &mut Session, args: Args<'_>) -> Done {
    expire_with(
        s,
        args,
        Unit {
            seconds: true,
            relative: true,
        },
        "expire",
    )
}

pub(crate) fn pexpire(s: &mut Session, args: Args<'_>) -> Done {
    expire_with(
        s,
        args,
        Unit {
            seconds: false,
            relative: true,
        },
        "pexpire",
    )
}

pub(crate) fn expireat(s: &mut Session, args: Args<'_>) -> Done {
    expire_with(
        s,
        args,
        Unit {
            seconds: true,
            relative: false,
        },
        "expireat",
    )
}

pub(crate) fn pexpireat(s: &mut Session, args: Args<'_>) -> Done {
    expire_with(
        s,
        args,
        Unit {
            seconds: false,
            relative: false,
        },
        "pexpireat",
    )
}

fn expiry_of(s: &mut Session, args: Args<'_>, show: impl Fn(u64, u64) -> u64) -> Done {
    let now = s.now_ms();
    let answer = match s.view(args.get(1))? {
        None => -2,
        Some(found) => match found.expires_at_ms {
            None => -1,
            Some(at) => i64::try_from(show(at, now)).unwrap_or(i64::MAX),
        },
    };
    s.out.int(answer);
    Ok(())
}

pub(crate) fn ttl(s: &mut Session, args: Args<'_>) -> Done {
    expiry_of(s, args, |at, now| (at.saturating_sub(now) + 500) / 1_000)
}

pub(crate) fn pttl(s: &mut Session, args: Args<'_>) -> Done {
    expiry_of(s, args, |at, now| at.saturating_sub(now))
}

pub(crate) fn expiretime(s: &mut Session, args: Args<'_>) -> Done {
    expiry_of(s, args, |at, _| at.saturating_add(500) / 1_000)
}

pub(crate) fn pexpiretime(s: &mut Session, args: Args<'_>) -> Done {
    expiry_of(s, args, |at, _| at)
}

pub(crate) fn persist(s: &mut Session, args: Args<'_>) -> Done {
    let key = args.get(1);
    let found = s.fetch(key)?.filter(|f| f.expires_at_ms.is_some());
    if let Some(found) = &found {
        s.put(key, &found.value, None)?;
        s.event(notify::GENERIC, "persist", key);
    }
    s.out.int(i64::from(found.is_some()));
    Ok(())
}

// ---- names --------------------------------------------------------------------------------------

/// Moves a value; `None` if there is none, else whether it was moved.
fn move_value(s: &mut Session, from: &[u8], to: &[u8], replace: bool) -> Result<bool, Stop> {
    let found = s.fetch(from)?.ok_or(NO_SUCH_KEY)?;
    if from == to {
        return Ok(replace);
    }
    if !replace && s.fetch(to)?.is_some() {
        return Ok(false);
    }
    s.put(to, &found.value, found.expires_at_ms)?;
    s.delete(from)?;
    s.event(notify::GENERIC, "rename_from", from);
    s.event(notify::GENERIC, "rename_to", to);
    Ok(true)
}

pub(crate) fn rename(s: &mut Session, args: Args<'_>) -> Done {
    move_value(s, args.get(1), args.get(2), true)?;
    s.out.ok();
    Ok(())
}

pub(crate) fn renamenx(s: &mut Session, args: Args<'_>) -> Done {
    let moved = move_value(s, args.get(1), args.get(2), false)?;
    s.out.int(i64::from(moved));
    Ok(())
}

pub(crate) fn copy(s: &mut Session, args: Args<'_>) -> Done {
    let (from, to) = (args.get(1), args.get(2));
    let (mut replace, mut db) = (false, s.db);
    let mut at = 3;
    while at < args.len() {
        match args.get(at).to_ascii_lowercase().as_slice() {
            b"replace" => replace = true,
            b"db" if at + 1 < args.len() => {
                at += 1;
                db = database_index(args.get(at))?;
            }
            _ => return Err(SYNTAX),
        }
        at += 1;
    }
    if from == to && db == s.db {
        return Err(refuse("ERR source and destination objects are the same"));
    }
    let target = match s.shared.known_database(db) {
        Some(ns) => ns,
        None => {
            s.need_thread()?;
            s.shared.database(db)?
        }
    };
    let Some(found) = s.fetch(from)? else {
        s.out.int(0);
        return Ok(());
    };
    let (own, own_db) = (std::mem::replace(&mut s.ns, target), s.db);
    s.db = db;
    let copied = copy_into(s, to, &found.value, found.expires_at_ms, replace);
    (s.ns, s.db) = (own, own_db);
    s.out.int(i64::from(copied?));
    Ok(())
}

fn copy_into(
    s: &mut Session,
    to: &[u8],
    value: &[u8],
    expires_at_ms: Option<u64>,
    replace: bool,
) -> Result<bool, Stop> {
    if !replace && s.fetch(to)?.is_some() {
        return Ok(false);
    }
    s.put(to, value, expires_at_ms)?;
    s.event(notify::GENERIC, "copy_to", to);
    Ok(true)
}

// ---- walks --------------------------------------------------------------------------------------

/// A range of keys.
pub(crate) type Bounds = (Bound<Vec<u8>>, Bound<Vec<u8>>);

/// The keys that begin with a prefix.
pub(crate) fn bounds_of(prefix: &[u8]) -> Bounds {
    let end = prefix_end(prefix).map_or(Bound::Unbounded, Bound::Excluded);
    if prefix.is_empty() {
        return (Bound::Unbounded, Bound::Unbounded);
    }
    (Bound::Included(prefix.to_vec()), end)
}

/// Whether no key can be within. (The engine's scans want a start before the end.)
pub(crate) fn is_empty_range((start, end): &Bounds) -> bool {
    match (start, end) {
        (Bound::Unbounded, _) | (_, Bound::Unbounded) => false,
        (Bound::Included(start), Bound::Included(end)) => start > end,
        (
            Bound::Included(start) | Bound::Excluded(start),
            Bound::Included(end) | Bound::Excluded(end),
        ) => start >= end,
    }
}

/// What a walk meets.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Met<'a> {
    pub(crate) key: &'a [u8],
    pub(crate) value: &'a [u8],
}

/// Walks over a range, in order, until `visit` says no. Within a transaction what it wrote is
/// there too.
pub(crate) fn walk(
    s: &Session,
    ns: &Namespace,
    bounds: Bounds,
    reverse: bool,
    keys_only: bool,
    mut visit: impl FnMut(Met<'_>) -> Result<bool, Stop>,
) -> Done {
    if is_empty_range(&bounds) {
        return Ok(());
    }
    let (id, now) = (ns.id().0, s.now_ms());
    let within = |key: &[u8]| {
        (match &bounds.0 {
            Bound::Unbounded => true,
            Bound::Included(start) => key >= start.as_slice(),
            Bound::Excluded(start) => key > start.as_slice(),
        }) && (match &bounds.1 {
            Bound::Unbounded => true,
            Bound::Included(end) => key <= end.as_slice(),
            Bound::Excluded(end) => key < end.as_slice(),
        })
    };
    let mut written: Vec<(&[u8], &Slot)> = Vec::new();
    let mut emptied = false;
    if let Some(overlay) = &s.overlay {
        let own = overlay
            .slots
            .range((id, Vec::new())..)
            .take_while(|((ns, _), _)| *ns == id);
        written.extend(
            own.filter(|((_, key), _)| within(key))
                .map(|((_, key), slot)| (key.as_slice(), slot)),
        );
        emptied = overlay.is_emptied(id);
        if !reverse {
            written.reverse();
        }
    }
    let mut scan = if emptied {
        None
    } else {
        let (start, end) = bounds.clone();
        let options = ScanOptions {
            start,
            end,
            reverse,
            keys_only,
        };
        {
            let (db, ns) = s.service().pinned(ns)?;
            Some(db.scan(&ns, options)?)
        }
    };
    let mut stored = match &mut scan {
        Some(scan) => scan.next()?,
        None => false,
    };
    loop {
        // The next written key comes first, or instead, if it is not behind the stored one.
        let order = match (&scan, written.last()) {
            (_, None) if !stored => return Ok(()),
            (Some(scan), Some((key, _))) if stored => {
                let order = (*key).cmp(scan.key());
                if reverse { order.reverse() } else { order }
            }
            (_, Some(_)) => std::cmp::Ordering::Less,
            (_, None) => std::cmp::Ordering::Greater,
        };
        if order.is_le()
            && let Some((key, slot)) = written.pop()
        {
            let alive = slot.expires_at_ms.is_none_or(|at| at > now);
            if let Some(value) = slot.value.as_deref().filter(|_| alive)
                && !visit(Met { key, value })?
            {
                return Ok(());
            }
        }
        if order.is_ge()
            && let Some(scan) = &mut scan
        {
            if order.is_gt() {
                let value = if keys_only { &[][..] } else { scan.value() };
                if !visit(Met {
                    key: scan.key(),
                    value,
                })? {
                    return Ok(());
                }
            }
            stored = scan.next()?;
        }
    }
}

pub(crate) fn keys(s: &mut Session, args: Args<'_>) -> Done {
    let pattern = args.get(1);
    let (prefix, all) = glob::literal_prefix(pattern);
    let most = s.shared.max_request;
    let ns = s.ns.clone();
    let (mut found, mut bytes) = (Vec::new(), 0);
    walk(s, &ns, bounds_of(&prefix), false, true, |met| {
        if all || glob::matches(pattern, met.key) {
            bytes += met.key.len() + 16;
            if bytes > most {
                return Err(refuse_with(format!(
                    "ERR a reply of KEYS has at most {most} bytes: use SCAN"
                )));
            }
            found.push(met.key.to_vec());
        }
        Ok(true)
    })?;
    s.out.array(found.len());
    for key in &found {
        s.out.bulk(key);
    }
    Ok(())
}

/// Redis reads a cursor as C reads an unsigned number: nothing is 0, and signs are allowed.
fn cursor_number(text: &[u8]) -> Option<u64> {
    let (negative, digits) = match text {
        [b'-', digits @ ..] => (true, digits),
        [b'+', digits @ ..] => (false, digits),
        [] => return Some(0),
        digits => (false, digits),
    };
    if !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let number: u64 = std::str::from_utf8(digits).ok()?.parse().ok()?;
    Some(if negative {
        number.wrapping_neg()
    } else {
        number
    })
}

pub(crate) fn scan(s: &mut Session, args: Args<'_>) -> Done {
    const INVALID: Stop = refuse("ERR invalid cursor");
    let cursor = cursor_number(args.get(1)).ok_or(INVALID)?;
    let (mut pattern, mut count, mut wanted) = (None, 10, true);
    let mut at = 2;
    while at < args.len() {
        let operand = args.get(at + 1);
        let has_operand = at + 1 < args.len();
        match args.get(at).to_ascii_lowercase().as_slice() {
            b"match" if has_operand => pattern = Some(operand),
            b"count" if has_operand => {
                count = int(operand)?;
                if count < 1 {
                    return Err(SYNTAX);
                }
            }
            b"type" if has_operand => wanted = operand.eq_ignore_ascii_case(b"string"),
            _ => return Err(SYNTAX),
        }
        at += 2;
    }
    let (prefix, all) = pattern.map_or((Vec::new(), true), glob::literal_prefix);
    let mut bounds = bounds_of(&prefix);
    if cursor != 0 {
        let after = s.shared.cursor(cursor).ok_or(INVALID)?;
        if bounds.0 == Bound::Unbounded || after.as_ref() >= prefix.as_slice() {
            bounds.0 = Bound::Excluded(after.to_vec());
        }
    }
    let most = usize::try_from(s.service().limits().page_bytes).unwrap_or(usize::MAX);
    let ns = s.ns.clone();
    let (mut found, mut bytes, mut seen, mut last) = (Vec::new(), 0, 0, None);
    let mut more = false;
    if wanted {
        walk(s, &ns, bounds, false, true, |met| {
            if last.is_some() {
                more = true;
                return Ok(false);
            }
            seen += 1;
            if all || pattern.is_none_or(|p| glob::matches(p, met.key)) {
                bytes += met.key.len() + 16;
                found.push(met.key.to_vec());
            }
            if seen == count || bytes > most {
                // Where the next page goes on, if there is anything left.
                last = Some(met.key.to_vec());
            }
            Ok(true)
        })?;
    }
    let next = match last {
        Some(last) if more => s.shared.remember_cursor(last),
        _ => 0,
    };
    s.out.array(2);
    s.out.bulk(next.to_string().as_bytes());
    s.out.array(found.len());
    for key in &found {
        s.out.bulk(key);
    }
    Ok(())
}

pub(crate) fn randomkey(s: &mut Session, _: Args<'_>) -> Done {
    let ns = s.ns.clone();
    let all = || (Bound::Unbounded, Bound::Unbounded);
    let mut ends = [None, None];
    for (end, reverse) in ends.iter_mut().zip([false, true]) {
        walk(s, &ns, all(), reverse, true, |met| {
            *end = Some(met.key.to_vec());
            Ok(false)
        })?;
    }
    let [Some(first), Some(last)] = ends else {
        s.out.null();
        return Ok(());
    };
    // A point between the first and the last key, and a few steps from there: keys that stand
    // close are found as often as those that stand alone, more or less.
    let common = first.iter().zip(&last).take_while(|(a, b)| a == b).count();
    let number = |key: &[u8]| {
        let bytes = key[common..].iter().copied().chain(std::iter::repeat(0));
        bytes
            .take(8)
            .fold(0_u64, |value, byte| value << 8 | u64::from(byte))
    };
    let (low, high) = (number(&first), number(&last).max(number(&first)));
    let chance = s.shared.entropy.next_u64();
    let span = u128::from(high - low) + 1;
    let point = low + (u128::from(chance) % span) as u64;
    let mut from = first[..common].to_vec();
    from.extend((0..8).rev().map(|i| (point >> (8 * i)) as u8));
    let mut steps = s.shared.entropy.next_u64() % 64;
    let mut picked = first;
    walk(
        s,
        &ns,
        (Bound::Included(from), Bound::Unbounded),
        false,
        true,
        |met| {
            picked = met.key.to_vec();
            steps = steps.saturating_sub(1);
            Ok(steps > 0)
        },
    )?;
    s.out.bulk(&picked);
    Ok(())
}

// ---- the whole database -------------------------------------------------------------------------

pub(crate) fn dbsize(s: &mut Session, _: Args<'_>) -> Done {
    let ns = s.ns.clone();
    let about = {
        let (db, ns) = s.service().pinned(&ns)?;
        db.approximate_count(&ns)
    };
    let mut count = 0;
    if about > EXACT_COUNT {
        count = about;
    } else {
        walk(
            s,
            &ns,
            (Bound::Unbounded, Bound::Unbounded),
            false,
            true,
            |_| {
                count += 1;
                Ok(true)
            },
        )?;
    }
    s.out.int(i64::try_from(count).unwrap_or(i64::MAX));
    Ok(())
}

fn flush_option(args: Args<'_>) -> Done {
    let known = |option: &[u8]| {
        option.eq_ignore_ascii_case(b"async") || option.eq_ignore_ascii_case(b"sync")
    };
    if args.len() > 2 || args.len() == 2 && !known(args.get(1)) {
        return Err(SYNTAX);
    }
    Ok(())
}

fn empty(s: &mut Session, list: &[Namespace]) -> Done {
    if s.overlay.is_some() {
        return list.iter().try_for_each(|ns| s.empty(ns));
    }
    s.modify(u64::MAX, |s| list.iter().try_for_each(|ns| s.empty(ns)))
}

pub(crate) fn flushdb(s: &mut Session, args: Args<'_>) -> Done {
    flush_option(args)?;
    let ns = s.ns.clone();
    empty(s, std::slice::from_ref(&ns))?;
    s.out.ok();
    Ok(())
}

pub(crate) fn flushall(s: &mut Session, args: Args<'_>) -> Done {
    flush_option(args)?;
    let all: Vec<_> = (0..DATABASES)
        .filter_map(|index| s.service().namespace(&Shared::database_name(index)).ok())
        .collect();
    empty(s, &all)?;
    s.out.ok();
    Ok(())
}

// ---- how a value is kept ------------------------------------------------------------------------

/// Answers about a value, or null if there is none.
fn about(
    s: &mut Session,
    args: Args<'_>,
    answer: impl FnOnce(&mut Session, &[u8]) -> Done,
) -> Done {
    match s.view(args.get(2))? {
        Some(found) => answer(s, &found.value),
        None => {
            s.out.null();
            Ok(())
        }
    }
}

pub(crate) fn object_encoding(s: &mut Session, args: Args<'_>) -> Done {
    about(s, args, |s, value| {
        let encoding: &[u8] = match value.len() {
            _ if crate::resp::parse::integer(value).is_some() => b"int",
            0..=44 => b"embstr",
            _ => b"raw",
        };
        s.out.bulk(encoding);
        Ok(())
    })
}

pub(crate) fn object_idletime(s: &mut Session, args: Args<'_>) -> Done {
    about(s, args, |s, _| {
        s.out.int(0);
        Ok(())
    })
}

pub(crate) fn object_refcount(s: &mut Session, args: Args<'_>) -> Done {
    about(s, args, |s, _| {
        s.out.int(1);
        Ok(())
    })
}

pub(crate) fn object_freq(s: &mut Session, args: Args<'_>) -> Done {
    about(s, args, |_, _| {
        Err(refuse(
            "ERR An LFU maxmemory policy is not selected, access frequency not tracked. Please note that when switching between policies at runtime LRU and LFU data will take some time to adjust.",
        ))
    })
}

pub(crate) fn memory_usage(s: &mut Session, args: Args<'_>) -> Done {
    if args.len() == 5 && args.get(3).eq_ignore_ascii_case(b"samples") {
        if int(args.get(4))? < 0 {
            return Err(SYNTAX);
        }
    } else if args.len() != 3 {
        return Err(SYNTAX);
    }
    match s.view(args.get(2))? {
        // Key, value, and about what an entry takes beside them.
        Some(found) => s.out.count(args.get(2).len() + found.value.len() + 24),
        None => s.out.null(),
    }
    Ok(())
}

pub(crate) fn dump(s: &mut Session, args: Args<'_>) -> Done {
    let dumped = s.view(args.get(1))?.map(|f| dump::dump(&f.value));
    s.out.bulk_or_null(dumped.as_deref());
    Ok(())
}

pub(crate) fn restore(s: &mut Session, args: Args<'_>) -> Done {
    let (mut replace, mut absolute) = (false, false);
    let (mut idle, mut frequency) = (false, false);
    let mut at = 4;
    while at < args.len() {
        match args.get(at).to_ascii_lowercase().as_slice() {
            b"replace" => replace = true,
            b"absttl" => absolute = true,
            // Redis keeps one of them, by its policy.
            b"idletime" if at + 1 < args.len() && !frequency => {
                idle = true;
                at += 1;
                if int(args.get(at))? < 0 {
                    return Err(refuse("ERR Invalid IDLETIME value, must be >= 0"));
                }
            }
            b"freq" if at + 1 < args.len() && !idle => {
                frequency = true;
                at += 1;
                if !(0..=255).contains(&int(args.get(at))?) {
                    return Err(refuse("ERR Invalid FREQ value, must be >= 0 and <= 255"));
                }
            }
            _ => return Err(SYNTAX),
        }
        at += 1;
    }
    let key = args.get(1);
    if !replace && s.fetch(key)?.is_some() {
        return Err(refuse("BUSYKEY Target key name already exists."));
    }
    let ttl = int(args.get(2))?;
    if ttl < 0 {
        return Err(refuse("ERR Invalid TTL value, must be >= 0"));
    }
    let value = dump::restore(args.get(3), s.shared.max_bulk).map_err(refuse)?;
    let now = s.now_ms();
    let expires_at = match ttl {
        0 => None,
        ttl if absolute => Some(ttl as u64),
        ttl => Some(now.saturating_add(ttl as u64)),
    };
    if expires_at.is_some_and(|at| at <= now) {
        if replace {
            s.delete(key)?;
        }
    } else {
        s.put(key, &value, expires_at)?;
        s.event(notify::GENERIC, "restore", key);
    }
    s.out.ok();
    Ok(())
}

/// Reads the number of a database.
pub(crate) fn database_index(text: &[u8]) -> Result<usize, Stop> {
    let index = crate::resp::parse::integer(text).ok_or(NOT_AN_INTEGER)?;
    if i32::try_from(index).is_err() {
        return Err(refuse(
            "ERR value is out of range, value must between -2147483648 and 2147483647",
        ));
    }
    usize::try_from(index)
        .ok()
        .filter(|&index| index < DATABASES)
        .ok_or(refuse("ERR DB index is out of range"))
}
