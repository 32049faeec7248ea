//! Scans and watches as streams, for code that is written in terms of [`futures_core::Stream`].

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use futures_core::Stream;

use crate::error::Result;
use crate::scan::{Scan, ScanEntry};
use crate::watch::{Watch, WatchEvent};

type Next<S, T> = Pin<Box<dyn Future<Output = (S, Option<Result<T>>)> + Send>>;

/// What [`Scan::into_stream`] and [`Watch::into_stream`] return.
pub struct Items<S, T> {
    source: Option<S>,
    next: Option<Next<S, T>>,
    ask: fn(S) -> Next<S, T>,
}

impl<S, T> std::fmt::Debug for Items<S, T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Items").finish_non_exhaustive()
    }
}

impl<S: Unpin, T> Stream for Items<S, T> {
    type Item = Result<T>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<T>>> {
        let this = &mut *self;
        if this.next.is_none() {
            this.next = this.source.take().map(this.ask);
        }
        let Some(next) = &mut this.next else {
            return Poll::Ready(None);
        };
        let Poll::Ready((source, item)) = next.as_mut().poll(cx) else {
            return Poll::Pending;
        };
        this.next = None;
        // Nothing follows an end; an error may be asked again.
        this.source = item.is_some().then_some(source);
        Poll::Ready(item)
    }
}

impl Scan {
    /// The entries as a stream. After an error it goes on where it was.
    pub fn into_stream(self) -> Items<Scan, ScanEntry> {
        Items {
            source: Some(self),
            next: None,
            ask: |mut scan| {
                Box::pin(async move {
                    let item = scan.next().await.transpose();
                    (scan, item)
                })
            },
        }
    }
}

impl Watch {
    /// The changes as a stream without an end. After an error it goes on where it was, which is of
    /// use only for errors that pass.
    pub fn into_stream(self) -> Items<Watch, WatchEvent> {
        Items {
            source: Some(self),
            next: None,
            ask: |mut watch| {
                Box::pin(async move {
                    let item = watch.next().await;
                    (watch, Some(item))
                })
            },
        }
    }
}
