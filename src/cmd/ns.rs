//! `firn ns`: namespaces.

use std::io::Write;

use serde_json::{Value, json};

use crate::exit::{Exit, Failure, Result};
use crate::flags::{NsAction, NsArgs, NsFormat, StoreArgs};
use crate::output;
use crate::store::{Access, DEFAULT_NAMESPACE, Store};
use crate::text::escape;

pub(crate) fn run(args: NsArgs) -> Result<()> {
    match args.action {
        NsAction::List { format, store } => list(format, store),
        NsAction::Create { name, store } => {
            let store = open(store, Access::Create)?;
            if !store.create_namespace(&name)? {
                return Err(Failure::new(
                    Exit::NotFound,
                    format!("namespace {name:?} exists already"),
                ));
            }
            store.close()
        }
        NsAction::Drop { name, yes, store } => {
            super::confirm(
                yes,
                &format!("this drops namespace {name:?} and everything in it"),
            )?;
            let store = open(store, Access::Write)?;
            store.drop_namespace(&name)?;
            store.close()
        }
    }
}

/// These verbs name their namespace themselves: the one of `--ns` need not exist.
fn open(args: StoreArgs, access: Access) -> Result<Store> {
    Store::open(
        &StoreArgs {
            ns: DEFAULT_NAMESPACE.to_owned(),
            ..args
        },
        access,
    )
}

fn list(format: NsFormat, args: StoreArgs) -> Result<()> {
    let store = open(args, Access::Read)?;
    let names = store.namespaces()?;
    if format == NsFormat::Json {
        let list: Vec<Value> = names
            .iter()
            .map(|(name, keys)| json!({ "name": name, "approximate_keys": keys }))
            .collect();
        output::print_json(&Value::from(list))?;
        return store.close();
    }
    let mut out = output::stdout();
    if format == NsFormat::Text {
        for (name, _) in &names {
            writeln!(out, "{}", escape(name.as_bytes()))?;
        }
    } else {
        let mut table = output::Table::new(&["name", "keys (about)"]);
        for (name, keys) in &names {
            let keys = keys.map_or("-".into(), |keys| keys.to_string());
            table.row([escape(name.as_bytes()), keys]);
        }
        table.print(&mut out)?;
    }
    out.flush()?;
    store.close()
}
