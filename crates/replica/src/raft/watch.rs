//! A value that tasks watch: the newest one counts, those between may be missed.
//!
//! Tokio has such a channel, but it wakes those who wait in an order that it draws by lot, from a
//! generator that nobody outside can seed. Everything above must run the same way twice in a
//! simulation, so this one wakes them in the order in which they began to watch.

use std::collections::BTreeMap;
use std::future::poll_fn;
use std::sync::Arc;
use std::task::{Poll, Waker};

use openraft_rt::watch::{RecvError, SendError};
use openraft_rt::{OptionalSend, OptionalSync};
use parking_lot::{Mutex, RwLock, RwLockReadGuard};

#[derive(Debug, Default)]
struct Control {
    version: u64,
    senders: usize,
    next_id: u64,
    receivers: usize,
    waiting: BTreeMap<u64, Waker>,
}

#[derive(Debug)]
struct Shared<T> {
    value: RwLock<T>,
    control: Mutex<Control>,
}

impl<T> Shared<T> {
    fn wake_all(&self, change: impl FnOnce(&mut Control)) {
        let waiting = {
            let mut control = self.control.lock();
            change(&mut control);
            std::mem::take(&mut control.waiting)
        };
        waiting.into_values().for_each(Waker::wake);
    }
}

/// The kind of channel, for the runtime.
#[derive(Debug)]
pub(crate) struct Watch;

/// Sets the value.
#[derive(Debug)]
pub(crate) struct Sender<T>(Arc<Shared<T>>);

/// Sees the value.
#[derive(Debug)]
pub(crate) struct Receiver<T> {
    shared: Arc<Shared<T>>,
    id: u64,
    seen: u64,
}

impl<T> Clone for Sender<T> {
    fn clone(&self) -> Self {
        self.0.control.lock().senders += 1;
        Self(Arc::clone(&self.0))
    }
}

impl<T> Drop for Sender<T> {
    fn drop(&mut self) {
        let is_last = {
            let mut control = self.0.control.lock();
            control.senders -= 1;
            control.senders == 0
        };
        if is_last {
            self.0.wake_all(|_| ());
        }
    }
}

impl<T> Receiver<T> {
    fn new(shared: &Arc<Shared<T>>, seen: Option<u64>) -> Self {
        let mut control = shared.control.lock();
        let id = control.next_id;
        control.next_id += 1;
        control.receivers += 1;
        Self {
            id,
            seen: seen.unwrap_or(control.version),
            shared: Arc::clone(shared),
        }
    }
}

impl<T> Clone for Receiver<T> {
    fn clone(&self) -> Self {
        Self::new(&self.shared, Some(self.seen))
    }
}

impl<T> Drop for Receiver<T> {
    fn drop(&mut self) {
        let mut control = self.shared.control.lock();
        control.receivers -= 1;
        control.waiting.remove(&self.id);
    }
}

impl openraft_rt::Watch for Watch {
    type Sender<T: OptionalSend + OptionalSync> = Sender<T>;
    type Receiver<T: OptionalSend + OptionalSync> = Receiver<T>;
    type Ref<'a, T: OptionalSend + 'a> = RwLockReadGuard<'a, T>;

    fn channel<T: OptionalSend + OptionalSync>(init: T) -> (Sender<T>, Receiver<T>) {
        let control = Control {
            senders: 1,
            ..Control::default()
        };
        let shared = Arc::new(Shared {
            value: RwLock::new(init),
            control: Mutex::new(control),
        });
        let receiver = Receiver::new(&shared, None);
        (Sender(shared), receiver)
    }
}

impl<T: OptionalSend + OptionalSync> openraft_rt::WatchSender<Watch, T> for Sender<T> {
    fn send(&self, value: T) -> Result<(), SendError<T>> {
        if self.0.control.lock().receivers == 0 {
            return Err(SendError(value));
        }
        *self.0.value.write() = value;
        self.0.wake_all(|control| control.version += 1);
        Ok(())
    }

    fn send_if_modified<F>(&self, modify: F) -> bool
    where
        F: FnOnce(&mut T) -> bool,
    {
        let is_modified = modify(&mut self.0.value.write());
        if is_modified {
            self.0.wake_all(|control| control.version += 1);
        }
        is_modified
    }

    fn borrow_watched(&self) -> RwLockReadGuard<'_, T> {
        self.0.value.read()
    }

    fn subscribe(&self) -> Receiver<T> {
        Receiver::new(&self.0, None)
    }
}

impl<T: OptionalSend + OptionalSync> openraft_rt::WatchReceiver<Watch, T> for Receiver<T> {
    async fn changed(&mut self) -> Result<(), RecvError> {
        poll_fn(|context| {
            let mut control = self.shared.control.lock();
            if control.version != self.seen {
                self.seen = control.version;
                return Poll::Ready(Ok(()));
            }
            if control.senders == 0 {
                return Poll::Ready(Err(RecvError(())));
            }
            control.waiting.insert(self.id, context.waker().clone());
            Poll::Pending
        })
        .await
    }

    fn borrow_watched(&self) -> RwLockReadGuard<'_, T> {
        self.shared.value.read()
    }

    fn borrow_and_update(&mut self) -> RwLockReadGuard<'_, T> {
        // The version first: a value that comes in between is seen now and told again.
        self.seen = self.shared.control.lock().version;
        self.shared.value.read()
    }
}
