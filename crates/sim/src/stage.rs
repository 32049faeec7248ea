//! Where a simulation takes place: a runtime whose time stands still, in this thread, and an ear for
//! panics, which tasks keep to themselves.

use std::cell::RefCell;
use std::panic::{self, AssertUnwindSafe};
use std::sync::Once;

use crate::swarm::{Plan, Report, run};

thread_local! {
    /// The panics of the simulation in this thread, if there is one.
    static PANICS: RefCell<Option<Vec<String>>> = const { RefCell::new(None) };
}

static HOOK: Once = Once::new();

/// Has panics in simulations noted, and those elsewhere told as always.
fn listen() {
    HOOK.call_once(|| {
        let told = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            let is_noted = PANICS.try_with(|panics| match &mut *panics.borrow_mut() {
                Some(panics) => {
                    panics.push(info.to_string());
                    true
                }
                None => false,
            });
            if !is_noted.unwrap_or(false) {
                told(info);
            }
        }));
    });
}

/// Runs a future to its end. Returns what it came to, unless it panicked, and all panics.
pub fn simulate<T>(work: impl Future<Output = T>) -> (Option<T>, Vec<String>) {
    listen();
    PANICS.set(Some(Vec::new()));
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .expect("a thread can have a runtime");
    let result = panic::catch_unwind(AssertUnwindSafe(|| runtime.block_on(work)));
    // What still runs is dropped here, and may panic too.
    let dropped = panic::catch_unwind(AssertUnwindSafe(|| drop(runtime)));
    drop(dropped);
    (result.ok(), PANICS.take().unwrap_or_default())
}

/// Runs a plan; a panic is a violation.
pub fn perform(plan: Plan) -> Report {
    let (report, panics) = simulate(run(plan));
    let mut report = report.unwrap_or_default();
    let panics = panics.into_iter().map(|panic| format!("panic: {panic}"));
    report.violations.extend(panics);
    report
}
