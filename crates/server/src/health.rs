//! Alive and ready.
//!
//! *Alive* means that the process answers: restarting it would not help anything. *Ready* means
//! that it should be sent requests: it is not about to stop, it can write, and a node of a cluster
//! follows a leader that a majority follows, and is not behind. Each check has a
//! name, so that an operator may leave one out (`?exclude=disk`) and see all (`?verbose`).

use crate::service::Service;

/// The outcome of a check.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Check {
    /// Its name.
    pub name: &'static str,
    /// What is wrong; `None`: nothing.
    pub failure: Option<String>,
}

/// The names of all checks of [`ready`].
pub const CHECKS: [&str; 5] = ["shutdown", "log", "disk", "background", "cluster"];

/// Looks at everything that readiness depends on.
pub fn ready(service: &Service) -> Vec<Check> {
    let stats = service.db().stats();
    let failures = [
        service
            .is_draining()
            .then(|| "the server is about to stop".to_owned()),
        stats.poisoned,
        stats
            .disk_full
            .then(|| "the disk is full: writes are refused, deletes are not".to_owned()),
        stats.background_error,
        service.cluster().and_then(|cluster| cluster.trouble()),
    ];
    CHECKS
        .into_iter()
        .zip(failures)
        .filter(|(name, _)| *name != "cluster" || service.cluster().is_some())
        .map(|(name, failure)| Check { name, failure })
        .collect()
}

/// The page, as etcd and Kubernetes have it: a line a check, then the verdict.
pub fn page(name: &str, checks: &[Check], verbose: bool) -> String {
    let failed = checks.iter().any(|c| c.failure.is_some());
    if !failed && !verbose {
        return "ok\n".into();
    }
    let mut page = String::new();
    for check in checks {
        match &check.failure {
            None => page.push_str(&format!("[+]{} ok\n", check.name)),
            Some(why) => page.push_str(&format!("[-]{} failed: {why}\n", check.name)),
        }
    }
    page.push_str(&format!(
        "{name} check {}\n",
        if failed { "failed" } else { "passed" }
    ));
    page
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_names_what_failed() {
        let good = Check {
            name: "log",
            failure: None,
        };
        let bad = Check {
            name: "disk",
            failure: Some("full".into()),
        };
        assert_eq!(page("readyz", std::slice::from_ref(&good), false), "ok\n");
        let all = page("readyz", &[good, bad], false);
        assert_eq!(
            all,
            "[+]log ok\n[-]disk failed: full\nreadyz check failed\n"
        );
    }
}
