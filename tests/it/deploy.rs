//! What is in `deploy/`: every metric that a panel or an alert names is one that a server has, and every
//! setting that the image, the compose file or the unit names is one that it takes.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;

use serde_json::Value;

use crate::http::Connection;
use crate::process::{Place, Server, command};

fn deploy(name: &str) -> String {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("deploy")
        .join(name);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Names of metrics in an expression.
fn metrics_in(expression: &str) -> BTreeSet<String> {
    let word = |c: char| !(c.is_ascii_alphanumeric() || c == '_' || c == ':');
    let words = expression.split(word).filter(|w| w.starts_with("firn_"));
    words.map(str::to_owned).collect()
}

/// Every string under a key named `expr`.
fn expressions(value: &Value, found: &mut Vec<String>) {
    match value {
        Value::Object(members) => {
            for (key, value) in members {
                match value {
                    Value::String(text) if key == "expr" || key == "query" => {
                        found.push(text.clone());
                    }
                    value => expressions(value, found),
                }
            }
        }
        Value::Array(items) => items.iter().for_each(|item| expressions(item, found)),
        _ => {}
    }
}

/// The names of all samples that a page can have, by the types that it describes.
fn samples(page: &str) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    for line in page.lines() {
        let Some((name, kind)) = line
            .strip_prefix("# TYPE ")
            .and_then(|described| described.split_once(' '))
        else {
            continue;
        };
        match kind {
            "histogram" => {
                names.extend(["_bucket", "_sum", "_count"].map(|suffix| format!("{name}{suffix}")));
            }
            _ => {
                names.insert(name.to_owned());
            }
        }
    }
    names
}

/// What the first node of a cluster has on its page after some requests.
fn exported() -> BTreeSet<String> {
    let place = Place::new();
    let flags = ["--peer-addr", "127.0.0.1:0", "--init-cluster"];
    let server = Server::start(&place.path("data"), &flags);
    let mut connection = Connection::open(&server.address).unwrap();
    for (method, target) in [("PUT", "/v1/keys/k"), ("GET", "/v1/keys/k")] {
        let reply = connection.request(method, target, b"v").unwrap();
        assert!(reply.status < 300, "{reply:?}");
    }
    let page = connection.request("GET", "/metrics", b"").unwrap();
    samples(std::str::from_utf8(&page.body).unwrap())
}

#[test]
fn dashboards_and_alerts_name_metrics_that_exist() {
    let exported = exported();
    let mut missing = BTreeSet::new();
    let mut check = |place: &str, expression: &str| {
        let unknown = metrics_in(expression).into_iter();
        for name in unknown.filter(|name| !exported.contains(name)) {
            missing.insert(format!("{place}: there is no metric {name}"));
        }
    };
    let dashboard: Value = serde_json::from_str(&deploy("grafana/dashboards/firn.json")).unwrap();
    let mut found = Vec::new();
    expressions(&dashboard, &mut found);
    assert!(found.len() > 20, "{} expressions", found.len());
    for expression in &found {
        check("dashboard", expression);
    }
    for rules in ["prometheus/alerts.yml", "prometheus/alerts_test.yml"] {
        let text = deploy(rules);
        assert!(!metrics_in(&text).is_empty(), "{rules}");
        for line in text.lines().filter(|line| !line.trim().starts_with('#')) {
            check(rules, line);
        }
    }
    let missing: Vec<_> = missing.into_iter().collect();
    assert!(missing.is_empty(), "\n{}", missing.join("\n"));
}

/// A panel without a data source, or two with one number, would show nothing in Grafana.
#[test]
fn the_dashboard_is_whole() {
    let dashboard: Value = serde_json::from_str(&deploy("grafana/dashboards/firn.json")).unwrap();
    let sources = deploy("grafana/provisioning/datasources/firn.yml");
    let mut numbers = BTreeSet::new();
    for panel in dashboard["panels"].as_array().unwrap() {
        let title = &panel["title"];
        assert!(numbers.insert(panel["id"].as_u64().unwrap()), "{title}");
        if panel["type"] == "row" {
            continue;
        }
        let source = panel["datasource"]["uid"].as_str().unwrap();
        assert!(sources.contains(&format!("uid: {source}\n")), "{title}");
        let targets = panel["targets"].as_array().unwrap();
        assert!(!targets.is_empty(), "{title}");
        assert!(panel["gridPos"]["w"].as_u64().unwrap() <= 24, "{title}");
    }
}

#[test]
fn settings_that_are_named_exist() {
    let printed = command().args(["serve", "--help"]).output().unwrap();
    let help = String::from_utf8(printed.stdout).unwrap();
    let of_compose = ["FIRN_IMAGE", "FIRN_MEMORY"];
    for file in [
        "docker/Dockerfile",
        "compose/compose.yaml",
        "systemd/firn.service",
    ] {
        let text = deploy(file);
        let word = |c: char| !(c.is_ascii_uppercase() || c == '_');
        let names = text.split(word).filter(|w| w.starts_with("FIRN_"));
        for name in names.filter(|name| !of_compose.contains(name)) {
            let flag = name.trim_start_matches("FIRN_").to_lowercase();
            let flag = format!("--{}", flag.replace('_', "-"));
            assert!(help.contains(&flag), "{file}: {name}: there is no {flag}");
        }
    }
}

#[test]
fn the_checks_bite() {
    let names = metrics_in("sum by (le) (rate(firn_a_bucket{x=\"firn\"}[5m])) / firn_b > 1");
    assert_eq!(
        names.into_iter().collect::<Vec<_>>(),
        ["firn_a_bucket", "firn_b"]
    );
    let page = "# HELP x y\n# TYPE firn_a histogram\n# TYPE firn_b gauge\nfirn_b 1\n";
    let found = samples(page);
    assert!(
        found.contains("firn_a_bucket") && found.contains("firn_b") && !found.contains("firn_a")
    );
}
