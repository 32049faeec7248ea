//! `firn cluster`: who belongs to a cluster, and changes of that.

use std::io::Write;
use std::path::Path;

use firn_api::http::ClusterReply;
use firn_client::blocking::Client;
use firn_engine::Options;
use firn_io::Env;
use serde_json::json;

use crate::exit::{Exit, Failure, Result};
use crate::flags::{ClusterAction, ClusterArgs, MemberArgs};
use crate::output::{self, ReportFormat, note};

/// Leaders that are followed from one to the next.
const HOPS: usize = 3;

pub(crate) fn run(args: ClusterArgs) -> Result<()> {
    match args.action {
        ClusterAction::Init { settings } => {
            let mut config = super::serve::load(&settings)?;
            config.init_cluster = true;
            prepare(&config, "the first node")
        }
        ClusterAction::Join { settings } => {
            let config = super::serve::load(&settings)?;
            if config.join.is_empty() {
                return Err(Failure::usage("--join is needed: the address of a member"));
            }
            prepare(&config, "a node without a vote")
        }
        ClusterAction::Status { format, member } => status(&member, format),
        ClusterAction::Members { format, member } => members(&member, format),
        ClusterAction::Promote { node, member } => {
            at_leader(&member, |client| client.promote(node))?;
            note(format_args!("node {node} has a vote"));
            Ok(())
        }
        ClusterAction::Demote { node, member } => {
            at_leader(&member, |client| client.demote(node))?;
            note(format_args!("node {node} has no vote"));
            Ok(())
        }
        ClusterAction::Remove {
            node,
            force,
            yes,
            member,
        } => {
            super::confirm(yes, &format!("this removes node {node} for good"))?;
            at_leader(&member, |client| client.remove(node, force))?;
            note(format_args!("node {node} is gone"));
            Ok(())
        }
        ClusterAction::Transfer { node, member } => {
            let leader = at_leader(&member, |client| client.transfer(node))?;
            note(format_args!("node {leader} leads"));
            Ok(())
        }
        ClusterAction::Recover { data_dir, yes } => recover(&data_dir, yes),
    }
}

fn prepare(config: &firn_server::config::Config, what: &str) -> Result<()> {
    let identity = firn_server::serve::prepare_node(config)?;
    let mut out = output::stdout();
    writeln!(out, "cluster {} node {}", identity.cluster, identity.node)?;
    out.flush()?;
    let dir = config.data_dir.display();
    note(format_args!(
        "{dir} is {what}; start it by `firn serve` with the same flags"
    ));
    Ok(())
}

/// Asks the server, and whom it names as the leader.
fn at_leader<T>(
    member: &MemberArgs,
    ask: impl Fn(&Client) -> std::result::Result<T, firn_client::Error>,
) -> Result<T> {
    let mut address = member.server.clone();
    for _ in 0..HOPS {
        let error = match ask(&Client::connect(&address)?) {
            Ok(answer) => return Ok(answer),
            Err(error) => error,
        };
        match error.problem().and_then(|problem| problem.leader.clone()) {
            Some(leader) => address = leader,
            None => return Err(error.into()),
        }
    }
    Err(Failure::new(
        Exit::Unreachable,
        "nobody knows who leads; try again",
    ))
}

fn index(index: Option<u64>) -> String {
    index.map_or("-".into(), |index| index.to_string())
}

fn print_members(known: &ClusterReply) -> Result<()> {
    let head = ["node", "role", "peer", "http", "resp", "lag", "heard"];
    let mut table = output::Table::new(&head);
    let shown = |text: &str| if text.is_empty() { "-" } else { text }.to_owned();
    for member in &known.members {
        let heard = member.heard_ms.map_or("-".into(), |ms| format!("{ms}ms"));
        table.row([
            member.node.to_string(),
            member.role.clone(),
            shown(&member.peer),
            shown(&member.http),
            shown(&member.resp),
            index(member.lag),
            heard,
        ]);
    }
    let mut out = output::stdout();
    table.print(&mut out)?;
    out.flush()?;
    Ok(())
}

fn status(member: &MemberArgs, format: ReportFormat) -> Result<()> {
    let known = Client::connect(&member.server)?.cluster()?;
    if format == ReportFormat::Json {
        output::print_json(&json!(known))?;
    } else {
        let mut out = output::stdout();
        let leader = known
            .leader
            .map_or("nobody".into(), |id| format!("node {id}"));
        writeln!(out, "cluster    {}", known.cluster)?;
        writeln!(out, "node       {}, {}", known.node, known.role)?;
        writeln!(out, "leader     {leader}, term {}", known.term)?;
        writeln!(
            out,
            "entries    last {}, committed {}, applied {}",
            index(known.last_index),
            index(known.committed_index),
            index(known.applied_index)
        )?;
        let trouble = known.trouble.as_deref();
        writeln!(out, "ready      {}", trouble.unwrap_or("yes"))?;
        writeln!(out)?;
        out.flush()?;
        drop(out);
        print_members(&known)?;
    }
    if known.trouble.is_some() {
        return Err(Failure::silent(Exit::Unreachable));
    }
    Ok(())
}

fn members(member: &MemberArgs, format: ReportFormat) -> Result<()> {
    let mut known = Client::connect(&member.server)?.cluster()?;
    // The leader knows more.
    let leader = known.members.iter().find(|m| Some(m.node) == known.leader);
    if let Some(leader) = leader.filter(|m| m.node != known.node && !m.http.is_empty())
        && let Ok(better) = Client::connect(&leader.http).and_then(|client| client.cluster())
    {
        known = better;
    }
    if format == ReportFormat::Json {
        return output::print_json(&json!(known.members));
    }
    print_members(&known)
}

fn recover(dir: &Path, yes: bool) -> Result<()> {
    let what = format!(
        "this makes {} a cluster of its own; what only other nodes had is lost, and they must never \
         be started again with what they have",
        dir.display()
    );
    super::confirm(yes, &what)?;
    let recovered = firn_server::cluster::recover(&Env::os(2), dir, &Options::default());
    let (identity, found) = recovered.map_err(firn_server::serve::ServeError::from)?;
    let mut out = output::stdout();
    writeln!(out, "cluster {} node {}", identity.cluster, identity.node)?;
    out.flush()?;
    let at = |id: Option<firn_replica::LogId>| id.map_or("none".into(), |id| id.to_string());
    note(format_args!(
        "its log ends at entry {}; of those up to {} it knew that a majority had them",
        at(found.last),
        at(found.committed)
    ));
    let others: Vec<String> = found
        .before
        .nodes
        .iter()
        .filter(|(id, _)| **id != identity.node)
        .map(|(id, member)| format!("{id} at {}", member.address))
        .collect();
    note(format_args!(
        "no longer members: {}",
        if others.is_empty() {
            "none".into()
        } else {
            others.join(", ")
        }
    ));
    Ok(())
}
