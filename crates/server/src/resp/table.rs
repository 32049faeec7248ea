//! The one table of commands. Dispatch, the check of arguments, `COMMAND` and `docs/api/resp.md`
//! come from it.
//!
//! A subcommand is a row of its own, called `container|name`. Arity counts the name (and that of the
//! container); a negative one is a minimum. Key positions are first, last (negative: from the end)
//! and step; no keys: zeros.

use std::sync::LazyLock;

use crate::resp::parse::Args;
use crate::resp::session::{Session, Stop};
use crate::resp::{client, keys, operate, own, pubsub, strings, txn};

/// How a command is run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum How {
    /// As it stands: it touches no data, or sees to it itself.
    Direct,
    /// Reads a key.
    Read,
    /// Reads, decides and writes, with its keys locked.
    Modify,
    /// Joins the run of plain writes if it decides nothing, and else is as `Modify`.
    Blind,
    /// Runs one of its subcommands.
    Container,
    /// Waits for what the connection wrote, then runs on a thread that may wait.
    Thread,
}

/// What runs a command.
pub type Run = fn(&mut Session, Args<'_>) -> Result<(), Stop>;

/// A row.
pub struct Command {
    /// The name in lower case.
    pub name: &'static str,
    /// How many arguments.
    pub arity: i64,
    /// The flags as `COMMAND` shows them, separated by spaces.
    pub flags: &'static str,
    /// How it is run.
    pub how: How,
    /// First and last key, and the step between keys.
    pub keys: (i64, i64, i64),
    /// The group of Redis's documentation.
    pub group: &'static str,
    /// The version of Redis (or Valkey, or Firn) that had it first.
    pub since: &'static str,
    /// The arguments, as documentation writes them.
    pub syntax: &'static str,
    /// One sentence.
    pub summary: &'static str,
    /// What runs it.
    pub run: Run,
}

impl std::fmt::Debug for Command {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Command")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

impl Command {
    /// Whether it may be called with so many arguments.
    #[inline]
    pub fn takes(&self, args: usize) -> bool {
        let args = args as i64;
        if self.arity >= 0 {
            args == self.arity
        } else {
            args >= -self.arity
        }
    }

    /// Whether it has this flag.
    pub fn is(&self, flag: &str) -> bool {
        self.flags.split(' ').any(|f| f == flag)
    }

    /// The container of a subcommand.
    pub fn container(&self) -> Option<&'static str> {
        self.name.split_once('|').map(|(container, _)| container)
    }

    /// The rows of its subcommands.
    pub fn subcommands(&self) -> impl Iterator<Item = &'static Self> + Clone + use<> {
        let name = self.name;
        COMMANDS.iter().filter(move |c| c.container() == Some(name))
    }

    /// The positions of the keys among these arguments.
    pub fn key_positions(&self, args: Args<'_>) -> impl Iterator<Item = usize> + Clone + use<> {
        let (mut first, mut last, step) = self.keys;
        let len = args.len() as i64;
        if self.name == "msetex" {
            // The second argument says how many pairs there are.
            let pairs = crate::resp::parse::integer(args.get(1)).unwrap_or(0);
            (first, last) = (2, pairs.clamp(0, len) * 2);
        } else if last < 0 {
            last += len;
        }
        let last = last.min(len - 1);
        let range = if first > 0 && step > 0 {
            first..last + 1
        } else {
            0..0
        };
        range.step_by(step.max(1) as usize).map(|at| at as usize)
    }
}

macro_rules! commands {
    ($($name:literal $arity:literal $flags:literal $how:ident ($first:literal $last:literal $step:literal)
       $group:literal $since:literal $syntax:literal $summary:literal $run:path;)*) => {
        /// Every command.
        pub static COMMANDS: &[Command] = &[$(Command {
            name: $name, arity: $arity, flags: $flags, how: How::$how,
            keys: ($first, $last, $step), group: $group, since: $since, syntax: $syntax,
            summary: $summary, run: $run,
        },)*];
    };
}

commands! {
    // Strings.
    "get" 2 "readonly fast" Read (1 1 1) "string" "1.0.0" "key"
        "Returns the value of a key." strings::get;
    "set" -3 "write denyoom" Blind (1 1 1) "string" "1.0.0"
        "key value [NX | XX | IFEQ value | IFNE value | IFDEQ digest | IFDNE digest] [GET] [EX seconds | PX milliseconds | EXAT unix-seconds | PXAT unix-milliseconds | KEEPTTL]"
        "Sets the value of a key, on a condition and with an expiry if asked to." strings::set;
    "setnx" 3 "write denyoom fast" Modify (1 1 1) "string" "1.0.0" "key value"
        "Sets the value of a key that does not exist." strings::setnx;
    "setex" 4 "write denyoom" Blind (1 1 1) "string" "2.0.0" "key seconds value"
        "Sets value and time to live of a key." strings::setex;
    "psetex" 4 "write denyoom" Blind (1 1 1) "string" "2.6.0" "key milliseconds value"
        "Sets value and time to live of a key, in milliseconds." strings::psetex;
    "getset" 3 "write denyoom fast" Modify (1 1 1) "string" "1.0.0" "key value"
        "Returns the value of a key and sets a new one." strings::getset;
    "getdel" 2 "write fast" Modify (1 1 1) "string" "6.2.0" "key"
        "Returns the value of a key and deletes it." strings::getdel;
    "getex" -2 "write fast" Modify (1 1 1) "string" "6.2.0"
        "key [EX seconds | PX milliseconds | EXAT unix-seconds | PXAT unix-milliseconds | PERSIST]"
        "Returns the value of a key and sets its expiry." strings::getex;
    "mget" -2 "readonly fast" Read (1 -1 1) "string" "1.0.0" "key [key ...]"
        "Returns the values of keys at one instant." strings::mget;
    "mset" -3 "write denyoom" Blind (1 -1 2) "string" "1.0.1" "key value [key value ...]"
        "Sets keys, all at once." strings::mset;
    "msetnx" -3 "write denyoom" Modify (1 -1 2) "string" "1.0.1" "key value [key value ...]"
        "Sets keys, all at once, if none of them exists." strings::msetnx;
    "msetex" -4 "write denyoom movablekeys" Modify (2 2 2) "string" "8.4.0"
        "numkeys key value [key value ...] [NX | XX] [EX seconds | PX milliseconds | EXAT unix-seconds | PXAT unix-milliseconds | KEEPTTL]"
        "Sets keys with an expiry, all at once, if none or all of them exist." strings::msetex;
    "strlen" 2 "readonly fast" Read (1 1 1) "string" "2.2.0" "key"
        "Returns the length of a value." strings::strlen;
    "append" 3 "write denyoom fast" Modify (1 1 1) "string" "2.0.0" "key value"
        "Appends to a value." strings::append;
    "getrange" 4 "readonly" Read (1 1 1) "string" "2.4.0" "key start end"
        "Returns a part of a value." strings::getrange;
    "substr" 4 "readonly" Read (1 1 1) "string" "1.0.0" "key start end"
        "Returns a part of a value (the old name of GETRANGE)." strings::getrange;
    "setrange" 4 "write denyoom" Modify (1 1 1) "string" "2.2.0" "key offset value"
        "Overwrites a part of a value." strings::setrange;
    "incr" 2 "write denyoom fast" Modify (1 1 1) "string" "1.0.0" "key"
        "Adds one to a whole number." strings::incr;
    "decr" 2 "write denyoom fast" Modify (1 1 1) "string" "1.0.0" "key"
        "Takes one from a whole number." strings::decr;
    "incrby" 3 "write denyoom fast" Modify (1 1 1) "string" "1.0.0" "key increment"
        "Adds to a whole number." strings::incrby;
    "decrby" 3 "write denyoom fast" Modify (1 1 1) "string" "1.0.0" "key decrement"
        "Takes from a whole number." strings::decrby;
    "incrbyfloat" 3 "write denyoom fast" Modify (1 1 1) "string" "2.6.0" "key increment"
        "Adds to a decimal fraction." strings::incrbyfloat;
    "delifeq" 3 "write fast" Modify (1 1 1) "string" "9.0.0" "key value"
        "Deletes a key that has this value (Valkey's spelling)." strings::delifeq;
    "delex" -2 "write fast" Modify (1 1 1) "string" "8.4.0"
        "key [IFEQ value | IFNE value | IFDEQ digest | IFDNE digest]"
        "Deletes a key on a condition." strings::delex;
    "digest" 2 "readonly fast" Read (1 1 1) "string" "8.4.0" "key"
        "Returns the XXH3 digest of a value." strings::digest;

    // Keys.
    "del" -2 "write" Modify (1 -1 1) "generic" "1.0.0" "key [key ...]"
        "Deletes keys." keys::del;
    "unlink" -2 "write fast" Modify (1 -1 1) "generic" "4.0.0" "key [key ...]"
        "Deletes keys; the same as DEL here." keys::del;
    "exists" -2 "readonly fast" Read (1 -1 1) "generic" "1.0.0" "key [key ...]"
        "Counts how many of the keys exist." keys::exists;
    "touch" -2 "readonly fast" Read (1 -1 1) "generic" "3.2.1" "key [key ...]"
        "Counts how many of the keys exist; there are no times of access to change." keys::exists;
    "type" 2 "readonly fast" Read (1 1 1) "generic" "1.0.0" "key"
        "Returns the type of a value: string, or none." keys::type_of;
    "expire" -3 "write fast" Modify (1 1 1) "generic" "1.0.0" "key seconds [NX | XX | GT | LT]"
        "Sets the time to live of a key." keys::expire;
    "pexpire" -3 "write fast" Modify (1 1 1) "generic" "2.6.0" "key milliseconds [NX | XX | GT | LT]"
        "Sets the time to live of a key in milliseconds." keys::pexpire;
    "expireat" -3 "write fast" Modify (1 1 1) "generic" "1.2.0" "key unix-seconds [NX | XX | GT | LT]"
        "Sets when a key expires." keys::expireat;
    "pexpireat" -3 "write fast" Modify (1 1 1) "generic" "2.6.0" "key unix-milliseconds [NX | XX | GT | LT]"
        "Sets when a key expires, in milliseconds." keys::pexpireat;
    "ttl" 2 "readonly fast" Read (1 1 1) "generic" "1.0.0" "key"
        "Returns the time to live of a key in seconds." keys::ttl;
    "pttl" 2 "readonly fast" Read (1 1 1) "generic" "2.6.0" "key"
        "Returns the time to live of a key in milliseconds." keys::pttl;
    "expiretime" 2 "readonly fast" Read (1 1 1) "generic" "7.0.0" "key"
        "Returns when a key expires." keys::expiretime;
    "pexpiretime" 2 "readonly fast" Read (1 1 1) "generic" "7.0.0" "key"
        "Returns when a key expires, in milliseconds." keys::pexpiretime;
    "persist" 2 "write fast" Modify (1 1 1) "generic" "2.2.0" "key"
        "Takes the expiry from a key." keys::persist;
    "rename" 3 "write" Modify (1 2 1) "generic" "1.0.0" "key newkey"
        "Renames a key." keys::rename;
    "renamenx" 3 "write fast" Modify (1 2 1) "generic" "1.0.0" "key newkey"
        "Renames a key if the new name is free." keys::renamenx;
    "copy" -3 "write denyoom" Modify (1 2 1) "generic" "6.2.0" "source destination [DB destination-db] [REPLACE]"
        "Copies a value to another key." keys::copy;
    "keys" 2 "readonly" Thread (0 0 0) "generic" "1.0.0" "pattern"
        "Returns the keys that match a pattern; a literal beginning narrows the search." keys::keys;
    "scan" -2 "readonly" Thread (0 0 0) "generic" "2.8.0" "cursor [MATCH pattern] [COUNT count] [TYPE type]"
        "Walks over the keys in order, a page at a time." keys::scan;
    "randomkey" 1 "readonly" Thread (0 0 0) "generic" "1.0.0" ""
        "Returns some key." keys::randomkey;
    "dbsize" 1 "readonly fast" Thread (0 0 0) "server" "1.0.0" ""
        "Counts the keys; beyond a million, approximately." keys::dbsize;
    "flushdb" -1 "write" Thread (0 0 0) "server" "1.0.0" "[ASYNC | SYNC]"
        "Deletes every key of the database, at once." keys::flushdb;
    "flushall" -1 "write" Thread (0 0 0) "server" "1.0.0" "[ASYNC | SYNC]"
        "Deletes every key of every numbered database, at once." keys::flushall;
    "dump" 2 "readonly" Read (1 1 1) "generic" "2.6.0" "key"
        "Returns a value in the form that RESTORE takes." keys::dump;
    "restore" -4 "write denyoom" Modify (1 1 1) "generic" "2.6.0"
        "key ttl serialized-value [REPLACE] [ABSTTL] [IDLETIME seconds] [FREQ frequency]"
        "Writes a value that DUMP gave, here or in Redis; strings only." keys::restore;
    "object" -2 "" Container (0 0 0) "generic" "2.2.3" "subcommand"
        "About how a value is kept." operate::container;
    "object|encoding" 3 "readonly" Read (2 2 1) "generic" "2.2.3" "key"
        "Returns the encoding that Redis would use." keys::object_encoding;
    "object|idletime" 3 "readonly" Read (2 2 1) "generic" "2.2.3" "key"
        "Returns 0: times of access are not kept." keys::object_idletime;
    "object|refcount" 3 "readonly" Read (2 2 1) "generic" "2.2.3" "key"
        "Returns 1." keys::object_refcount;
    "object|freq" 3 "readonly" Read (2 2 1) "generic" "4.0.0" "key"
        "Answers as Redis does without an LFU policy." keys::object_freq;
    "memory" -2 "" Container (0 0 0) "server" "4.0.0" "subcommand"
        "About memory." operate::container;
    "memory|usage" -3 "readonly" Read (2 2 1) "server" "4.0.0" "key [SAMPLES count]"
        "Returns the bytes of key and value and what keeping them costs, roughly." keys::memory_usage;

    // Transactions.
    "multi" 1 "noscript loading stale fast" Direct (0 0 0) "transactions" "1.2.0" ""
        "Starts a transaction." txn::multi;
    "exec" 1 "noscript loading stale" Direct (0 0 0) "transactions" "1.2.0" ""
        "Runs what was queued, all or nothing." txn::exec;
    "discard" 1 "noscript loading stale fast" Direct (0 0 0) "transactions" "2.0.0" ""
        "Forgets what was queued." txn::discard;
    "watch" -2 "noscript loading stale fast" Read (1 -1 1) "transactions" "2.2.0" "key [key ...]"
        "Makes the next transaction depend on keys staying as they are." txn::watch;
    "unwatch" 1 "noscript loading stale fast" Direct (0 0 0) "transactions" "2.2.0" ""
        "Forgets what was watched." txn::unwatch;

    // Connection.
    "ping" -1 "fast" Direct (0 0 0) "connection" "1.0.0" "[message]"
        "Answers PONG, or the message." client::ping;
    "echo" 2 "loading stale fast" Direct (0 0 0) "connection" "1.0.0" "message"
        "Returns the message." client::echo;
    "quit" -1 "noscript loading stale fast no_auth" Direct (0 0 0) "connection" "1.0.0" ""
        "Closes the connection." client::quit;
    "reset" 1 "noscript loading stale fast no_auth" Direct (0 0 0) "connection" "6.2.0" ""
        "Makes the connection as it was when it was opened." client::reset;
    "hello" -1 "noscript loading stale fast no_auth" Direct (0 0 0) "connection" "6.0.0"
        "[protover [AUTH username password] [SETNAME clientname]]"
        "Chooses the protocol and describes the server." client::hello;
    "auth" -2 "noscript loading stale fast no_auth" Direct (0 0 0) "connection" "1.0.0" "[username] password"
        "Answers as Redis does without a password." client::auth;
    "select" 2 "loading stale fast" Direct (0 0 0) "connection" "1.0.0" "index"
        "Chooses a database: 0 is the namespace `default`, n is `db<n>`, made when it is first chosen." client::select;
    "client" -2 "noscript loading stale" Container (0 0 0) "connection" "2.4.0" "subcommand"
        "About connections." operate::container;
    "client|id" 2 "noscript loading stale" Direct (0 0 0) "connection" "5.0.0" ""
        "Returns the number of the connection." client::id;
    "client|getname" 2 "noscript loading stale" Direct (0 0 0) "connection" "2.6.9" ""
        "Returns the name of the connection." client::getname;
    "client|setname" 3 "noscript loading stale" Direct (0 0 0) "connection" "2.6.9" "connection-name"
        "Names the connection." client::setname;
    "client|setinfo" 4 "noscript loading stale" Direct (0 0 0) "connection" "7.2.0" "LIB-NAME name | LIB-VER version"
        "Names the client's library." client::setinfo;
    "client|info" 2 "noscript loading stale" Direct (0 0 0) "connection" "6.2.0" ""
        "Describes this connection." client::info;
    "client|list" -2 "admin noscript loading stale" Direct (0 0 0) "connection" "2.4.0" "[TYPE type] [ID client-id [client-id ...]]"
        "Describes the connections." client::list;
    "client|kill" -3 "admin noscript loading stale" Direct (0 0 0) "connection" "2.4.0"
        "ip:port | [ID client-id] [ADDR ip:port] [LADDR ip:port] [TYPE type] [SKIPME YES|NO]"
        "Closes connections." client::kill;
    "client|reply" 3 "noscript loading stale" Direct (0 0 0) "connection" "3.2.0" "ON | OFF | SKIP"
        "Chooses whether commands are answered." client::reply;
    "client|no-evict" 3 "admin noscript loading stale" Direct (0 0 0) "connection" "7.0.0" "ON | OFF"
        "Accepted; connections are not evicted." client::on_off;
    "client|no-touch" 3 "noscript loading stale" Direct (0 0 0) "connection" "7.2.0" "ON | OFF"
        "Accepted; times of access are not kept." client::on_off;

    // Server.
    "command" -1 "loading stale" Container (0 0 0) "server" "2.8.13" "[subcommand]"
        "Describes the commands." operate::command;
    "command|count" 2 "loading stale" Direct (0 0 0) "server" "2.8.13" ""
        "Counts the commands." operate::command_count;
    "command|list" -2 "loading stale" Direct (0 0 0) "server" "7.0.0" "[FILTERBY MODULE name | ACLCAT category | PATTERN pattern]"
        "Returns the names of the commands." operate::command_list;
    "command|info" -2 "loading stale" Direct (0 0 0) "server" "2.8.13" "[name ...]"
        "Describes commands for programs." operate::command_info;
    "command|docs" -2 "loading stale" Direct (0 0 0) "server" "7.0.0" "[name ...]"
        "Describes commands for people." operate::command_docs;
    "command|getkeys" -3 "loading stale" Direct (0 0 0) "server" "2.8.13" "command [arg ...]"
        "Returns the keys among the arguments of a command." operate::command_getkeys;
    "info" -1 "loading stale" Direct (0 0 0) "server" "1.0.0" "[section ...]"
        "Describes the server." operate::info;
    "time" 1 "loading stale fast" Direct (0 0 0) "server" "2.6.0" ""
        "Returns the time: seconds, and microseconds of the second." operate::time;
    "lolwut" -1 "readonly fast" Direct (0 0 0) "server" "5.0.0" "[VERSION version]"
        "Snow." operate::lolwut;
    "config" -2 "admin noscript loading stale" Container (0 0 0) "server" "2.0.0" "subcommand"
        "About the configuration." operate::container;
    "config|get" -3 "admin noscript loading stale" Direct (0 0 0) "server" "2.0.0" "parameter [parameter ...]"
        "Returns parameters by pattern, with Redis's names." operate::config_get;
    "config|set" -4 "admin noscript loading stale" Direct (0 0 0) "server" "2.0.0" "parameter value [parameter value ...]"
        "Changes parameters of the slow log and of key events." operate::config_set;
    "config|resetstat" 2 "admin noscript loading stale" Direct (0 0 0) "server" "2.0.0" ""
        "Makes the counters of INFO start again; metrics go on." operate::config_resetstat;
    "slowlog" -2 "admin loading stale" Container (0 0 0) "server" "2.2.12" "subcommand"
        "About slow commands." operate::container;
    "slowlog|get" -2 "admin loading stale" Direct (0 0 0) "server" "2.2.12" "[count]"
        "Returns the last slow commands." operate::slowlog_get;
    "slowlog|len" 2 "admin loading stale" Direct (0 0 0) "server" "2.2.12" ""
        "Counts the slow commands that are kept." operate::slowlog_len;
    "slowlog|reset" 2 "admin loading stale" Direct (0 0 0) "server" "2.2.12" ""
        "Forgets the slow commands." operate::slowlog_reset;
    "latency" -2 "admin noscript loading stale" Container (0 0 0) "server" "2.8.13" "subcommand"
        "About latency spikes, of which none are recorded: see /metrics." operate::container;
    "latency|latest" 2 "admin noscript loading stale" Direct (0 0 0) "server" "2.8.13" ""
        "Returns nothing." operate::empty_array;
    "latency|history" 3 "admin noscript loading stale" Direct (0 0 0) "server" "2.8.13" "event"
        "Returns nothing." operate::empty_array;
    "latency|reset" -2 "admin noscript loading stale" Direct (0 0 0) "server" "2.8.13" "[event ...]"
        "Returns 0." operate::zero;
    "role" 1 "noscript loading stale fast" Direct (0 0 0) "server" "2.8.12" ""
        "Returns the role in replication: master without replicas." operate::role;
    "wait" 3 "noscript" Direct (0 0 0) "generic" "3.0.0" "numreplicas timeout"
        "Waits for replicas, of which there are none." operate::wait;
    "waitaof" 4 "noscript" Thread (0 0 0) "generic" "7.2.0" "numlocal numreplicas timeout"
        "Syncs what was written, here." operate::waitaof;
    "save" 1 "admin noscript" Thread (0 0 0) "server" "1.0.0" ""
        "Flushes memtables to disk." operate::save;
    "bgsave" -1 "admin noscript" Direct (0 0 0) "server" "1.0.0" "[SCHEDULE]"
        "Flushes memtables to disk, in the background." operate::bgsave;
    "bgrewriteaof" 1 "admin noscript" Direct (0 0 0) "server" "1.0.0" ""
        "Accepted; the log needs no rewriting." operate::bgrewriteaof;
    "lastsave" 1 "loading stale fast" Direct (0 0 0) "server" "1.0.0" ""
        "Returns when SAVE or BGSAVE last ended, or the server started." operate::lastsave;
    "debug" -2 "admin noscript loading stale" Direct (0 0 0) "server" "1.0.0" "subcommand"
        "Refused, as Redis does by default." operate::debug;
    "acl" -2 "admin noscript loading stale" Container (0 0 0) "server" "6.0.0" "subcommand"
        "About users, of which there is one." operate::container;
    "acl|whoami" 2 "noscript loading stale" Direct (0 0 0) "server" "6.0.0" ""
        "Returns the user's name: default." operate::acl_whoami;
    "readonly" 1 "loading stale fast" Direct (0 0 0) "cluster" "3.0.0" ""
        "On a node of a cluster: reads answer with what it has, which may be old." operate::readonly;
    "readwrite" 1 "loading stale fast" Direct (0 0 0) "cluster" "3.0.0" ""
        "The end of that: reads miss nothing." operate::readwrite;
    "cluster" -2 "loading stale" Container (0 0 0) "cluster" "3.0.0" "subcommand"
        "About the cluster, seen as one shard." operate::container;
    "cluster|info" 2 "loading stale" Direct (0 0 0) "cluster" "3.0.0" ""
        "Describes the cluster." operate::cluster_info;
    "cluster|myid" 2 "loading stale" Direct (0 0 0) "cluster" "3.0.0" ""
        "Returns this node's id." operate::cluster_myid;
    "cluster|keyslot" 3 "loading stale" Direct (0 0 0) "cluster" "3.0.0" "key"
        "Returns the slot of a key." operate::cluster_keyslot;
    "cluster|slots" 2 "loading stale" Direct (0 0 0) "cluster" "3.0.0" ""
        "Returns which node has which slots." operate::cluster_slots;
    "cluster|shards" 2 "loading stale" Direct (0 0 0) "cluster" "7.0.0" ""
        "Describes the one shard." operate::cluster_shards;
    "cluster|nodes" 2 "loading stale" Direct (0 0 0) "cluster" "3.0.0" ""
        "Describes the one node." operate::cluster_nodes;

    // Messages.
    "subscribe" -2 "pubsub noscript loading stale" Direct (0 0 0) "pubsub" "2.0.0" "channel [channel ...]"
        "Listens to channels; key events come this way too." pubsub::subscribe;
    "unsubscribe" -1 "pubsub noscript loading stale" Direct (0 0 0) "pubsub" "2.0.0" "[channel ...]"
        "Stops listening to channels." pubsub::unsubscribe;
    "psubscribe" -2 "pubsub noscript loading stale" Direct (0 0 0) "pubsub" "2.0.0" "pattern [pattern ...]"
        "Listens to channels whose names match." pubsub::psubscribe;
    "punsubscribe" -1 "pubsub noscript loading stale" Direct (0 0 0) "pubsub" "2.0.0" "[pattern ...]"
        "Stops listening to patterns." pubsub::punsubscribe;
    "publish" 3 "pubsub loading stale fast" Direct (0 0 0) "pubsub" "2.0.0" "channel message"
        "Sends a message to those who listen; it is not kept." pubsub::publish;
    "pubsub" -2 "" Container (0 0 0) "pubsub" "2.8.0" "subcommand"
        "About channels." operate::container;
    "pubsub|channels" -2 "pubsub loading stale" Direct (0 0 0) "pubsub" "2.8.0" "[pattern]"
        "Returns the channels that somebody listens to." pubsub::channels;
    "pubsub|numsub" -2 "pubsub loading stale" Direct (0 0 0) "pubsub" "2.8.0" "[channel ...]"
        "Counts who listens to channels." pubsub::numsub;
    "pubsub|numpat" 2 "pubsub loading stale" Direct (0 0 0) "pubsub" "2.8.0" ""
        "Counts the patterns." pubsub::numpat;

    // Our own.
    "firn.range" -3 "readonly" Thread (0 0 0) "firn" "0.1.0" "start end [REV] [LIMIT count] [KEYSONLY]"
        "Returns keys and values from start to end in order, and where to go on. A bound is `[key` (with it), `(key` (without it), `-` (the least) or `+` (the greatest)." own::range;
    "firn.prefix" -2 "readonly" Thread (0 0 0) "firn" "0.1.0" "prefix [AFTER key] [REV] [LIMIT count] [KEYSONLY]"
        "Returns the keys that begin with a prefix and their values in order, and where to go on." own::prefix;
    "firn.delrange" 3 "write" Thread (0 0 0) "firn" "0.1.0" "start end"
        "Deletes every key from start to end, at once; bounds as in FIRN.RANGE." own::delrange;
    "firn.delprefix" 2 "write" Thread (0 0 0) "firn" "0.1.0" "prefix"
        "Deletes every key that begins with a prefix, at once." own::delprefix;
    "firn.getv" 2 "readonly fast" Read (1 1 1) "firn" "0.1.0" "key"
        "Returns version and value of a key." own::getv;
    "firn.cas" -4 "write denyoom" Modify (1 1 1) "firn" "0.1.0" "key version value [EX seconds | PX milliseconds | KEEPTTL]"
        "Sets a key that still has this version (0: that does not exist); returns the new version, or null." own::cas;
    "firn.cad" 3 "write" Modify (1 1 1) "firn" "0.1.0" "key version"
        "Deletes a key that still has this version; returns 1 or 0." own::cad;
    "firn.durability" -1 "fast" Direct (0 0 0) "firn" "0.1.0" "[sync | buffered]"
        "Chooses when writes of this connection are acknowledged, and returns the choice." own::durability;
}

const SLOTS: usize = 1024;

/// Names to rows: open addressing, half empty at most.
static INDEX: LazyLock<[u16; SLOTS]> = LazyLock::new(|| {
    let mut index = [u16::MAX; SLOTS];
    for (row, command) in COMMANDS.iter().enumerate() {
        let mut slot = hash(command.name.as_bytes());
        while index[slot] != u16::MAX {
            slot = (slot + 1) % SLOTS;
        }
        index[slot] = row as u16;
    }
    index
});

/// FNV-1a of the lower case.
fn hash(name: &[u8]) -> usize {
    let mix = |hash: u32, byte: &u8| {
        (hash ^ u32::from(byte.to_ascii_lowercase())).wrapping_mul(0x0100_0193)
    };
    let hash = name.iter().fold(0x811c_9dc5, mix);
    (hash ^ hash >> 15) as usize % SLOTS
}

/// The row of a name in any case.
#[inline]
pub fn find(name: &[u8]) -> Option<u16> {
    if name.len() > 32 {
        return None;
    }
    let mut slot = hash(name);
    loop {
        let row = INDEX[slot];
        let command = COMMANDS.get(usize::from(row))?;
        if command.name.as_bytes().eq_ignore_ascii_case(name) {
            return Some(row);
        }
        slot = (slot + 1) % SLOTS;
    }
}

/// The row of a subcommand.
pub fn find_sub(container: &str, name: &[u8]) -> Option<u16> {
    let mut whole = Vec::with_capacity(container.len() + 1 + name.len().min(32));
    whole.extend_from_slice(container.as_bytes());
    whole.push(b'|');
    whole.extend_from_slice(name.get(..32).unwrap_or(name));
    find(&whole)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_is_found_and_names_are_unique() {
        assert!(COMMANDS.len() * 2 < SLOTS);
        for (row, command) in COMMANDS.iter().enumerate() {
            let upper = command.name.to_uppercase();
            assert_eq!(find(upper.as_bytes()), Some(row as u16), "{upper}");
            assert!(!command.summary.is_empty() && command.summary.ends_with('.'));
            if let Some(container) = command.container() {
                let (_, sub) = command.name.split_once('|').unwrap();
                assert!(find(container.as_bytes()).is_some());
                assert_eq!(find_sub(container, sub.as_bytes()), Some(row as u16));
            }
            // What locks or prefetches keys must know them.
            let writes = matches!(command.how, How::Modify | How::Blind);
            assert_eq!(writes, command.is("write") && command.how != How::Thread);
            assert!(!writes || command.keys.0 > 0);
        }
        for name in [
            "",
            "hget",
            "eval",
            "client|",
            "client|nothing",
            "getgetgetgetgetgetgetgetgetgetgetget",
        ] {
            assert_eq!(find(name.as_bytes()), None, "{name}");
        }
    }

    #[test]
    fn key_positions_follow_the_row() {
        let positions = |name: &str, args: usize| -> Vec<usize> {
            let spans = vec![(0, 0); args];
            let row = find(name.as_bytes()).unwrap();
            COMMANDS[usize::from(row)]
                .key_positions(Args::new(b"", &spans))
                .collect()
        };
        assert_eq!(positions("get", 2), [1]);
        assert_eq!(positions("mset", 5), [1, 3]);
        assert_eq!(positions("del", 4), [1, 2, 3]);
        assert_eq!(positions("rename", 3), [1, 2]);
        assert_eq!(positions("ping", 2), Vec::<usize>::new());
    }
}
