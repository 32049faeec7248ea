//! Who a directory is in which cluster.
//!
//! `CLUSTER` in the data directory is a few lines of TOML that people may read; the server writes it
//! once, when the directory becomes a node, and again when the cluster was recovered:
//!
//! ```text
//! # Written by firn; see docs/cluster.md before you change it.
//! cluster = "8a3f00c1d2e4b596"
//! node = 1
//! ```
//!
//! It is written beside and renamed into place, with the directory synced. A directory without it is
//! no node, or not yet: whoever joins writes it after the cluster gave it a number, and before the node
//! is started. A crash in between leaves a member that never comes, which `firn cluster remove` takes
//! away.

use std::fmt;
use std::path::Path;

use firn_io::Env;
use firn_io::fs::OpenMode;

/// The name of the file.
pub const FILE: &str = "CLUSTER";
const TMP: &str = "CLUSTER.tmp";
const MAX_BYTES: usize = 4096;

/// Names a cluster for good: two clusters never talk to each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ClusterId(pub u64);

impl fmt::Display for ClusterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl ClusterId {
    /// Reads what [`fmt::Display`] prints.
    pub fn parse(text: &str) -> Option<Self> {
        let is_hex = text.len() == 16 && text.bytes().all(|b| b.is_ascii_hexdigit());
        let number = is_hex.then(|| u64::from_str_radix(text, 16).ok())??;
        (number != 0).then_some(Self(number))
    }

    /// The bytes by which nodes know it.
    pub fn to_bytes(self) -> [u8; 16] {
        let mut bytes = [0; 16];
        for (at, byte) in bytes.iter_mut().skip(8).enumerate() {
            *byte = (self.0 >> (56 - 8 * at)) as u8;
        }
        bytes
    }

    /// One that nobody has.
    pub fn random(env: &Env) -> Self {
        Self(env.entropy.next_u64().max(1))
    }
}

/// Which node of which cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The cluster.
    pub cluster: ClusterId,
    /// The node.
    pub node: u64,
}

impl Identity {
    /// What the directory says; `None` if it is no node.
    ///
    /// # Errors
    /// In words: the file cannot be read or understood.
    pub fn read(env: &Env, dir: &Path) -> Result<Option<Self>, String> {
        let path = dir.join(FILE);
        let failed = |error: firn_io::Error| error.to_string();
        if !env.fs.exists(&path).map_err(failed)? {
            return Ok(None);
        }
        let file = env.fs.open(&path, OpenMode::Read).map_err(failed)?;
        let mut bytes = vec![0; MAX_BYTES];
        let len = file.read_at(&mut bytes, 0).map_err(failed)?;
        bytes.truncate(len);
        let text = String::from_utf8(bytes).map_err(|_| format!("{}: no text", path.display()))?;
        Self::parse(&text)
            .map(Some)
            .map_err(|detail| format!("{}: {detail}", path.display()))
    }

    fn parse(text: &str) -> Result<Self, String> {
        let table: toml::Table = text.parse().map_err(|e: toml::de::Error| e.to_string())?;
        if let Some(other) = table
            .keys()
            .find(|key| !["cluster", "node"].contains(&key.as_str()))
        {
            return Err(format!("{other:?} is not known to this build"));
        }
        let cluster = table.get("cluster").and_then(toml::Value::as_str);
        let cluster = cluster
            .and_then(ClusterId::parse)
            .ok_or("cluster: 16 hexadecimal digits are needed")?;
        let node = table.get("node").and_then(toml::Value::as_integer);
        let node = node.and_then(|node| u64::try_from(node).ok());
        let node = node
            .filter(|&node| node > 0)
            .ok_or("node: a number is needed")?;
        Ok(Self { cluster, node })
    }

    /// Writes it, durably, in place of any before.
    ///
    /// # Errors
    /// In words: the file cannot be written.
    pub fn write(&self, env: &Env, dir: &Path) -> Result<(), String> {
        let text = format!(
            "# Written by firn; see docs/cluster.md before you change it.\ncluster = \"{}\"\nnode = {}\n",
            self.cluster, self.node
        );
        let write = || -> firn_io::Result<()> {
            env.fs.create_dir_durable(dir)?;
            let tmp = dir.join(TMP);
            let file = env.fs.open(&tmp, OpenMode::Create)?;
            file.write_at(text.as_bytes(), 0)?;
            file.sync_data()?;
            env.fs.rename(&tmp, &dir.join(FILE))?;
            env.fs.sync_dir(dir)
        };
        write().map_err(|error| error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_read_as_written() {
        let dir = tempfile::tempdir().unwrap();
        let env = Env::os(1);
        let path = dir.path().join("new");
        assert_eq!(Identity::read(&env, &path), Ok(None));
        let identity = Identity {
            cluster: ClusterId(0xab),
            node: 48_210,
        };
        identity.write(&env, &path).unwrap();
        assert_eq!(Identity::read(&env, &path), Ok(Some(identity)));
        let again = Identity {
            cluster: ClusterId::random(&env),
            ..identity
        };
        again.write(&env, &path).unwrap();
        assert_eq!(Identity::read(&env, &path), Ok(Some(again)));
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        let id = "cluster = \"00000000000000ab\"\n";
        for (text, part) in [
            ("", "cluster: 16"),
            ("cluster = \"ab\"\nnode = 1", "cluster: 16"),
            ("cluster = \"0000000000000000\"\nnode = 1", "cluster: 16"),
            (id, "node: a number"),
            (&format!("{id}node = 0"), "node: a number"),
            (&format!("{id}node = -1"), "node: a number"),
            (&format!("{id}node = 1\nname = 2"), "\"name\" is not known"),
            ("node", "expected"),
        ] {
            let error = Identity::parse(text).unwrap_err();
            assert!(error.contains(part), "{text}: {error}");
        }
    }
}
