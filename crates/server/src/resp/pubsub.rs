//! Messages to those who listen: `SUBSCRIBE`, `PSUBSCRIBE`, `PUBLISH`, and key events.
//!
//! A message is written once for each protocol and handed to every listener's mailbox; nothing is
//! kept. A listener that reads too slowly loses its connection when [`MAX_QUEUED_BYTES`] wait for
//! it, as in Redis: dropping some messages in silence would be worse.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use parking_lot::RwLock;

use crate::resp::client::{Client, Mail};
use crate::resp::glob;
use crate::resp::parse::Args;
use crate::resp::reply::{Out, Proto};
use crate::resp::session::{Session, Stop, bad_subcommand, refuse_with};

type Done = Result<(), Stop>;

/// Bytes of messages that may wait for a listener.
pub(crate) const MAX_QUEUED_BYTES: usize = 32 << 20;
/// Channels and patterns that a connection may listen to.
const MAX_SUBSCRIPTIONS: usize = 100_000;

type Listeners = BTreeMap<u64, Arc<Client>>;
type Names = BTreeMap<Vec<u8>, Listeners>;

/// Who listens to what.
#[derive(Debug, Default)]
pub struct Hub {
    channels: RwLock<Names>,
    patterns: RwLock<Names>,
}

/// What a connection listens to.
#[derive(Debug, Default)]
pub struct Subscriptions {
    channels: BTreeSet<Vec<u8>>,
    patterns: BTreeSet<Vec<u8>>,
}

impl Subscriptions {
    /// Whether it listens at all.
    #[inline]
    pub fn any(&self) -> bool {
        !self.channels.is_empty() || !self.patterns.is_empty()
    }

    fn len(&self) -> usize {
        self.channels.len() + self.patterns.len()
    }
}

impl Hub {
    /// Sends a message and returns how many get it.
    pub fn publish(&self, channel: &[u8], message: &[u8]) -> usize {
        let mut receivers = 0;
        if let Some(listeners) = self.channels.read().get(channel) {
            let forms = Forms::of(&[b"message", channel, message]);
            for client in listeners.values() {
                forms.send(client);
                receivers += 1;
            }
        }
        for (pattern, listeners) in &*self.patterns.read() {
            if glob::matches(pattern, channel) {
                let forms = Forms::of(&[b"pmessage", pattern, channel, message]);
                for client in listeners.values() {
                    forms.send(client);
                    receivers += 1;
                }
            }
        }
        receivers
    }

    /// How many channels and patterns somebody listens to.
    pub fn len(&self) -> (usize, usize) {
        (self.channels.read().len(), self.patterns.read().len())
    }

    /// Whether nobody listens to anything.
    pub fn is_empty(&self) -> bool {
        self.len() == (0, 0)
    }

    /// Forgets a connection.
    pub fn leave(&self, client: &Client, subscriptions: &Subscriptions) {
        for (names, of) in [
            (&self.channels, &subscriptions.channels),
            (&self.patterns, &subscriptions.patterns),
        ] {
            let mut names = names.write();
            for name in of {
                remove(&mut names, name, client.id);
            }
        }
    }
}

fn remove(names: &mut Names, name: &[u8], id: u64) {
    if let Some(listeners) = names.get_mut(name) {
        listeners.remove(&id);
        if listeners.is_empty() {
            names.remove(name);
        }
    }
}

/// A message in both protocols.
struct Forms([bytes::Bytes; 2]);

impl Forms {
    fn of(parts: &[&[u8]]) -> Self {
        Self([Proto::V2, Proto::V3].map(|proto| {
            let mut out = Out::new();
            out.proto = proto;
            out.push(parts.len());
            for part in parts {
                out.bulk(part);
            }
            out.bytes.into()
        }))
    }

    fn send(&self, client: &Client) {
        let form = &self.0[usize::from(client.is_v3())];
        if client.queue_bytes(form.len()) > MAX_QUEUED_BYTES {
            tracing::warn!(
                client = client.id,
                address = client.address,
                "too slow a listener"
            );
            client.send(Mail::Close);
        } else {
            client.send(Mail::Message(form.clone()));
        }
    }
}

/// Writes what a change of subscriptions is answered with, for each name.
fn confirm(s: &mut Session, kind: &str, name: Option<&[u8]>) {
    s.out.push(3);
    s.out.bulk(kind.as_bytes());
    s.out.bulk_or_null(name);
    let count = s.subscriptions.len();
    s.out.count(count);
    s.client.note_subscriptions(
        s.subscriptions.channels.len(),
        s.subscriptions.patterns.len(),
    );
}

fn join(s: &mut Session, args: Args<'_>, patterns: bool) -> Done {
    let names = args.from(1);
    if s.subscriptions.len() + names.len() > MAX_SUBSCRIPTIONS {
        return Err(refuse_with(format!(
            "ERR a connection listens to at most {MAX_SUBSCRIPTIONS} channels and patterns"
        )));
    }
    for name in names.iter() {
        let shared = Arc::clone(&s.shared);
        let (own, hub, kind) = if patterns {
            (
                &mut s.subscriptions.patterns,
                &shared.hub.patterns,
                "psubscribe",
            )
        } else {
            (
                &mut s.subscriptions.channels,
                &shared.hub.channels,
                "subscribe",
            )
        };
        if own.insert(name.to_vec()) {
            let mut hub = hub.write();
            let listeners = hub.entry(name.to_vec()).or_default();
            listeners.insert(s.client.id, Arc::clone(&s.client));
        }
        confirm(s, kind, Some(name));
    }
    Ok(())
}

fn part(s: &mut Session, args: Args<'_>, patterns: bool) -> Done {
    let kind = if patterns {
        "punsubscribe"
    } else {
        "unsubscribe"
    };
    let own = if patterns {
        &s.subscriptions.patterns
    } else {
        &s.subscriptions.channels
    };
    let names: Vec<Vec<u8>> = if args.len() > 1 {
        args.from(1).iter().map(<[u8]>::to_vec).collect()
    } else {
        own.iter().cloned().collect()
    };
    if names.is_empty() {
        confirm(s, kind, None);
    }
    for name in names {
        let shared = Arc::clone(&s.shared);
        let (own, hub) = if patterns {
            (&mut s.subscriptions.patterns, &shared.hub.patterns)
        } else {
            (&mut s.subscriptions.channels, &shared.hub.channels)
        };
        if own.remove(&name) {
            remove(&mut hub.write(), &name, s.client.id);
        }
        confirm(s, kind, Some(&name));
    }
    Ok(())
}

pub(crate) fn subscribe(s: &mut Session, args: Args<'_>) -> Done {
    join(s, args, false)
}

pub(crate) fn psubscribe(s: &mut Session, args: Args<'_>) -> Done {
    join(s, args, true)
}

pub(crate) fn unsubscribe(s: &mut Session, args: Args<'_>) -> Done {
    part(s, args, false)
}

pub(crate) fn punsubscribe(s: &mut Session, args: Args<'_>) -> Done {
    part(s, args, true)
}

/// Stops listening to anything.
pub(crate) fn leave_all(s: &mut Session) {
    s.shared.hub.leave(&s.client, &s.subscriptions);
    s.subscriptions = Subscriptions::default();
    s.client.note_subscriptions(0, 0);
}

pub(crate) fn publish(s: &mut Session, args: Args<'_>) -> Done {
    let receivers = s.shared.hub.publish(args.get(1), args.get(2));
    s.out.count(receivers);
    Ok(())
}

pub(crate) fn channels(s: &mut Session, args: Args<'_>) -> Done {
    if args.len() > 3 {
        return Err(bad_subcommand("PUBSUB", args));
    }
    let pattern = (args.len() > 2).then(|| args.get(2));
    let shared = Arc::clone(&s.shared);
    let channels = shared.hub.channels.read();
    let matching = || {
        let names = channels.keys();
        names.filter(move |name| pattern.is_none_or(|p| glob::matches(p, name)))
    };
    s.out.array(matching().count());
    for name in matching() {
        s.out.bulk(name);
    }
    Ok(())
}

pub(crate) fn numsub(s: &mut Session, args: Args<'_>) -> Done {
    let shared = Arc::clone(&s.shared);
    let channels = shared.hub.channels.read();
    let names = args.from(2);
    s.out.array(2 * names.len());
    for name in names.iter() {
        s.out.bulk(name);
        s.out.count(channels.get(name).map_or(0, BTreeMap::len));
    }
    Ok(())
}

pub(crate) fn numpat(s: &mut Session, _: Args<'_>) -> Done {
    let count = s.shared.hub.patterns.read().len();
    s.out.count(count);
    Ok(())
}
