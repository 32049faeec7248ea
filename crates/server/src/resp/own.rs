//! The commands that Redis does not have: ranges in order, deletes of ranges, versions.

use std::ops::Bound;

use firn_api::limits::DEFAULT_PAGE_ENTRIES;

use crate::resp::keys::{Bounds, bounds_of, is_empty_range, walk};
use crate::resp::parse::{Args, integer};
use crate::resp::session::{NOT_AN_INTEGER, SYNTAX, Session, Stop, refuse, refuse_with};
use crate::resp::shared::notify;
use crate::resp::strings::Unit;
use crate::service::durability_name;

type Done = Result<(), Stop>;

const NOT_IN_MULTI: Stop = refuse("ERR not in a transaction: WATCH and EXEC do this");

/// Reads a bound as those of `ZRANGEBYLEX` are written.
fn bound(text: &[u8]) -> Result<Bound<Vec<u8>>, Stop> {
    match text {
        b"-" | b"+" => Ok(Bound::Unbounded),
        [b'[', key @ ..] => Ok(Bound::Included(key.to_vec())),
        [b'(', key @ ..] => Ok(Bound::Excluded(key.to_vec())),
        _ => Err(refuse("ERR a bound is [key, (key, - or +")),
    }
}

fn bounds(start: &[u8], end: &[u8]) -> Result<Bounds, Stop> {
    if start == b"+" || end == b"-" {
        return Err(refuse("ERR the start of a range is at most its end"));
    }
    Ok((bound(start)?, bound(end)?))
}

/// The options of a walk.
#[derive(Clone, Copy, Debug)]
struct Page {
    reverse: bool,
    keys_only: bool,
    limit: u64,
}

fn page(s: &mut Session, bounds: Bounds, page: Page) -> Done {
    let limits = s.service().limits();
    if page.limit > limits.page_entries {
        return Err(refuse_with(format!(
            "ERR limits.page_entries is {}, got {}",
            limits.page_entries, page.limit
        )));
    }
    let most = usize::try_from(limits.page_bytes).unwrap_or(usize::MAX);
    let ns = s.ns.clone();
    let mut found: Vec<(Vec<u8>, Vec<u8>)> = Vec::new();
    let (mut bytes, mut more) = (0, false);
    walk(s, &ns, bounds, page.reverse, page.keys_only, |met| {
        let size = met.key.len() + met.value.len();
        if found.len() as u64 == page.limit || !found.is_empty() && bytes + size > most {
            more = true;
            return Ok(false);
        }
        bytes += size;
        found.push((met.key.to_vec(), met.value.to_vec()));
        Ok(true)
    })?;
    s.out.array(2);
    match found.last() {
        Some((key, _)) if more => s.out.bulk(&[b"(", key.as_slice()].concat()),
        _ => s.out.null(),
    }
    s.out
        .array(found.len() * if page.keys_only { 1 } else { 2 });
    for (key, value) in &found {
        s.out.bulk(key);
        if !page.keys_only {
            s.out.bulk(value);
        }
    }
    Ok(())
}

/// Reads the options from `at` on; `AFTER` only where it is taken.
fn options<'a>(
    args: Args<'a>,
    mut at: usize,
    after: Option<&mut Option<&'a [u8]>>,
) -> Result<Page, Stop> {
    let mut page = Page {
        reverse: false,
        keys_only: false,
        limit: DEFAULT_PAGE_ENTRIES,
    };
    let mut after = after;
    while at < args.len() {
        let has_operand = at + 1 < args.len();
        match args.get(at).to_ascii_lowercase().as_slice() {
            b"rev" => page.reverse = true,
            b"keysonly" => page.keys_only = true,
            b"limit" if has_operand => {
                at += 1;
                let limit = integer(args.get(at)).ok_or(NOT_AN_INTEGER)?;
                page.limit = u64::try_from(limit)
                    .ok()
                    .filter(|&limit| limit > 0)
                    .ok_or(refuse("ERR LIMIT is at least 1"))?;
            }
            b"after" if has_operand && after.is_some() => {
                at += 1;
                if let Some(after) = &mut after {
                    **after = Some(args.get(at));
                }
            }
            _ => return Err(SYNTAX),
        }
        at += 1;
    }
    Ok(page)
}

pub(crate) fn range(s: &mut Session, args: Args<'_>) -> Done {
    let options = options(args, 3, None)?;
    page(s, bounds(args.get(1), args.get(2))?, options)
}

pub(crate) fn prefix(s: &mut Session, args: Args<'_>) -> Done {
    let mut after = None;
    let options = options(args, 2, Some(&mut after))?;
    let (mut start, mut end) = bounds_of(args.get(1));
    if let Some(after) = after {
        // What FIRN.RANGE and we return as the place to go on is taken as it is.
        let after = Bound::Excluded(after.strip_prefix(b"(").unwrap_or(after).to_vec());
        *(if options.reverse {
            &mut end
        } else {
            &mut start
        }) = after;
    }
    page(s, (start, end), options)
}

/// The keys of a range as the engine takes them: from, to but without, and one more.
fn delete_bounds(s: &mut Session, bounds: Bounds) -> Done {
    if s.overlay.is_some() {
        return Err(NOT_IN_MULTI);
    }
    if is_empty_range(&bounds) {
        s.out.ok();
        return Ok(());
    }
    // The key behind another is that with a zero at its end.
    let behind = |mut key: Vec<u8>| {
        key.push(0);
        key
    };
    let start = match bounds.0 {
        Bound::Unbounded => Vec::new(),
        Bound::Included(start) => start,
        Bound::Excluded(start) => behind(start),
    };
    let end = match bounds.1 {
        Bound::Unbounded => None,
        Bound::Included(end) => Some(behind(end)),
        Bound::Excluded(end) => Some(end),
    };
    for key in [Some(&start), end.as_ref()].into_iter().flatten() {
        s.check_size(key, 0)?;
    }
    let ns = s.ns.clone();
    s.modify(u64::MAX, |s| {
        let last = vec![0xff; firn_engine::options::MAX_KEY_BYTES];
        let to = end.as_deref().unwrap_or(&last);
        if start.as_slice() < to {
            s.batch.delete_range(&ns, &start, to)?;
        }
        if end.is_none() {
            s.batch.delete(&ns, &last)?;
        }
        Ok(())
    })?;
    s.out.ok();
    Ok(())
}

pub(crate) fn delrange(s: &mut Session, args: Args<'_>) -> Done {
    let bounds = bounds(args.get(1), args.get(2))?;
    delete_bounds(s, bounds)
}

pub(crate) fn delprefix(s: &mut Session, args: Args<'_>) -> Done {
    delete_bounds(s, bounds_of(args.get(1)))
}

pub(crate) fn getv(s: &mut Session, args: Args<'_>) -> Done {
    match s.view(args.get(1))? {
        Some(found) => {
            s.out.array(2);
            s.out.int(i64::try_from(found.version).unwrap_or(i64::MAX));
            s.out.bulk(&found.value);
        }
        None => s.out.null_array(),
    }
    Ok(())
}

fn version(text: &[u8]) -> Result<u64, Stop> {
    let version = integer(text).and_then(|version| u64::try_from(version).ok());
    version.ok_or(refuse("ERR a version is a whole number, 0 or more"))
}

pub(crate) fn cas(s: &mut Session, args: Args<'_>) -> Done {
    if s.overlay.is_some() {
        return Err(NOT_IN_MULTI);
    }
    let (key, wanted, value) = (args.get(1), version(args.get(2))?, args.get(3));
    let option = args.get(4).to_ascii_lowercase();
    let (mut expires_at, mut keep) = (None, false);
    match (args.len(), option.as_slice()) {
        (4, _) => {}
        (5, b"keepttl") => keep = true,
        (6, b"ex" | b"px") => {
            let unit = Unit {
                seconds: option == b"ex",
                relative: true,
            };
            expires_at = Some(unit.at(args.get(5), s.now_ms(), "firn.cas")?);
        }
        _ => return Err(SYNTAX),
    }
    let found = s.fetch(key)?;
    if found.as_ref().map_or(0, |f| f.version) != wanted {
        s.out.null();
        return Ok(());
    }
    let kept = found.and_then(|f| f.expires_at_ms).filter(|_| keep);
    s.put(key, value, expires_at.or(kept))?;
    s.event(notify::STRING, "set", key);
    s.answer_version();
    Ok(())
}

pub(crate) fn cad(s: &mut Session, args: Args<'_>) -> Done {
    let (key, wanted) = (args.get(1), version(args.get(2))?);
    let found = s.fetch(key)?.filter(|f| f.version == wanted && wanted != 0);
    if found.is_some() {
        s.delete(key)?;
        s.event(notify::GENERIC, "del", key);
    }
    s.out.int(i64::from(found.is_some()));
    Ok(())
}

pub(crate) fn durability(s: &mut Session, args: Args<'_>) -> Done {
    match (args.len(), args.get(1).to_ascii_lowercase().as_slice()) {
        (1, _) => {}
        (2, b"sync") => s.durability = firn_engine::Durability::Sync,
        (2, b"buffered") => {
            s.durability = s.service().promised(firn_engine::Durability::Buffered);
        }
        _ => return Err(refuse("ERR durability is sync or buffered")),
    }
    let name = durability_name(s.durability);
    s.out.bulk(name.as_bytes());
    Ok(())
}
