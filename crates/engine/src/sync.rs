//! The atomics and the lock of what is model-checked (`memtable`, `publish`): the standard library's,
//! or loom's in `cargo xtask loom`.

#[cfg(not(all(test, loom)))]
pub(crate) use self::real::*;

#[cfg(all(test, loom))]
pub(crate) use self::model::*;

#[cfg(not(all(test, loom)))]
mod real {
    pub(crate) use parking_lot::Mutex;
    pub(crate) use std::sync::atomic::{
        AtomicPtr, AtomicU32, AtomicU64, AtomicUsize, Ordering, fence,
    };

    /// Nothing: see the model's.
    #[derive(Debug)]
    pub(crate) struct Written;

    impl Written {
        #[inline]
        pub(crate) const fn now() -> Self {
            Self
        }

        #[inline]
        pub(crate) const fn check(&self) {}
    }

    /// Before an attempt that failed because another thread was faster is repeated.
    #[inline]
    pub(crate) const fn before_retry() {}
}

#[cfg(all(test, loom))]
mod model {
    pub(crate) use loom::sync::atomic::{Ordering, fence};

    /// Declares an atomic that marks every access in a `gate` beside it.
    ///
    /// Loom looks for races with the last access to an atomic only. A writer that loads before it
    /// stores, as ours do, hides every other thread's earlier load from it, and loom then explores
    /// almost nothing. The gate is only stored to, never loaded: two accesses are always a race
    /// to explore, and it orders nothing.
    macro_rules! atomic {
        ($name:ident $(<$t:ident>)?, $value:ty) => {
            #[derive(Debug)]
            pub(crate) struct $name $(<$t>)? {
                gate: loom::sync::atomic::AtomicUsize,
                inner: loom::sync::atomic::$name $(<$t>)?,
            }

            impl $(<$t>)? $name $(<$t>)? {
                pub(crate) fn new(value: $value) -> Self {
                    Self {
                        gate: loom::sync::atomic::AtomicUsize::new(0),
                        inner: loom::sync::atomic::$name::new(value),
                    }
                }

                #[track_caller]
                pub(crate) fn load(&self, order: Ordering) -> $value {
                    self.gate.store(0, Ordering::Relaxed);
                    self.inner.load(order)
                }

                #[track_caller]
                pub(crate) fn store(&self, value: $value, order: Ordering) {
                    self.gate.store(0, Ordering::Relaxed);
                    self.inner.store(value, order);
                }
            }
        };
    }

    atomic!(AtomicPtr<T>, *mut T);
    atomic!(AtomicU32, u32);
    atomic!(AtomicU64, u64);
    atomic!(AtomicUsize, usize);

    impl Default for AtomicU64 {
        fn default() -> Self {
            Self::new(0)
        }
    }

    /// A lock with parking_lot's interface.
    #[derive(Debug, Default)]
    pub(crate) struct Mutex<T>(loom::sync::Mutex<T>);

    impl<T> Mutex<T> {
        pub(crate) fn new(value: T) -> Self {
            Self(loom::sync::Mutex::new(value))
        }

        pub(crate) fn lock(&self) -> loom::sync::MutexGuard<'_, T> {
            match self.0.lock() {
                Ok(guard) => guard,
                Err(poisoned) => poisoned.into_inner(),
            }
        }
    }

    /// Beside memory that is written once and then read without atomics. The model fails where a
    /// read does not happen after the write.
    #[derive(Debug)]
    pub(crate) struct Written(loom::cell::UnsafeCell<()>);

    impl Written {
        pub(crate) fn now() -> Self {
            Self(loom::cell::UnsafeCell::new(()))
        }

        pub(crate) fn check(&self) {
            self.0.with(|_| ());
        }
    }

    /// Loom may answer loads with old values again and again; not after this.
    pub(crate) fn before_retry() {
        loom::thread::yield_now();
    }
}
