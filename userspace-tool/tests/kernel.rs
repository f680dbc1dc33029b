// SPDX-License-Identifier: GPL-2.0-only

//! The nf_tables part against the kernel that runs, with `nft` as the judge. The module is
//! simulated.
//!
//! Each test has a network namespace to itself. Where that is not allowed, or nft or a part of
//! nf_tables is missing, it prints SKIPPED with the reason and passes.

#![allow(clippy::pedantic, reason = "tests may be blunt")]

mod support;

use std::io;
use std::os::fd::AsRawFd;
use std::process::Child;
use std::process::Command;
use std::process::Stdio;

use fasttrack_tool::mark::Mark;
use fasttrack_tool::nft::batch;
use fasttrack_tool::nft::batch::Outcome;
use fasttrack_tool::nft::expr::RouteIpsec;
use fasttrack_tool::nft::expr::Secpath;
use fasttrack_tool::nft::table;
use fasttrack_tool::nl::Bus;
use fasttrack_tool::nl::Messages;
use fasttrack_tool::nl::Socket;
use fasttrack_tool::nl::Transport;
use fasttrack_tool::nl::Wait;
use fasttrack_tool::nl::sys;
use fasttrack_tool::wire::IpsecMode;
use nftnl::Batch;
use nftnl::Chain;
use nftnl::MsgType;
use nftnl::ProtoFamily;
use nftnl::Rule;
use nftnl::Table;
use nftnl::nft_expr;
use support::Outcome as Run;
use support::Simulation;
use support::World;
use support::netns::in_private_netns;
use support::netns::program;
use support::netns::skip;
use support::tool;

fn kernel() -> Simulation {
    Simulation { real_nf_tables: true, ..Simulation::new(World::default()) }
}

fn nft(arguments: &[&str]) -> String {
    program("nft", arguments).unwrap()
}

fn nft_file(text: &str) -> Result<String, String> {
    let path = std::env::temp_dir().join(format!("fasttrack-test-{}.nft", std::process::id()));
    std::fs::write(&path, text).unwrap();
    let result = program("nft", &["-f", path.to_str().unwrap()]);
    std::fs::remove_file(&path).unwrap();
    result
}

/// Runs a command that has to succeed.
fn succeed(system: &Simulation, arguments: &[&str]) -> String {
    let Run { status, stdout, stderr } = tool(system, arguments, "");
    assert_eq!((status, stderr.as_str()), (0, ""), "{arguments:?}");
    stdout
}

/// A private network namespace in which everything that the table needs is there.
fn with_nf_tables(test: &str, body: impl FnOnce(&Simulation)) {
    in_private_netns(test, || {
        if let Err(reason) = program("nft", &["--version"]) {
            return skip(test, &format!("no nft: {reason}"));
        }
        for (expression, chain) in [
            (
                "meta ipsec exists counter ct mark set ct mark | 1",
                "type filter hook prerouting priority -150",
            ),
            ("rt ipsec exists snat ip to ip saddr", "type nat hook postrouting priority 99"),
        ] {
            nft(&["flush", "ruleset"]);
            let text = format!("table inet probe {{ chain c {{ {chain};\n{expression}\n}}\n}}\n");
            if let Err(reason) = nft_file(&text) {
                return skip(test, &format!("the kernel does not take “{expression}”: {reason}"));
            }
        }
        nft(&["flush", "ruleset"]);
        body(&kernel());
    });
}

const MARKS: [&str; 7] = [
    "0x08000000/0x08000000",
    "0x10/0xf0",
    "0/0x8",
    "0xf0/0xf0",
    "7/0xffffffff",
    "0/0xffffffff",
    "0/0",
];

#[test]
fn nft_lists_the_table_as_we_do() {
    with_nf_tables("nft_lists_the_table_as_we_do", |system| {
        for mark in MARKS {
            succeed(system, &["enable", "--mark", mark]);
            for (options, nft_options) in [("", ""), ("-a", "-a"), ("-n", "-y"), ("-an", "-ay")] {
                let options: Vec<_> =
                    [options, "list", "ruleset"].into_iter().filter(|o| !o.is_empty()).collect();
                let nft_options: Vec<_> = [nft_options, "list", "table", "inet", "fasttrack"]
                    .into_iter()
                    .filter(|o| !o.is_empty())
                    .collect();
                // Older and newer versions of nft write the same handle differently.
                let normal = |text: String| text.replace("\t# handle", " # handle");
                assert_eq!(
                    normal(succeed(system, &options)),
                    normal(nft(&nft_options)),
                    "{mark} {options:?}"
                );
            }
        }
    });
}

#[test]
fn nft_says_the_same_in_json() {
    with_nf_tables("nft_says_the_same_in_json", |system| {
        for mark in MARKS {
            succeed(system, &["enable", "--mark", mark]);
            let Ok(theirs) = program("nft", &["-j", "list", "table", "inet", "fasttrack"]) else {
                return skip("nft_says_the_same_in_json", "nft is built without JSON");
            };
            let theirs: serde_json::Value = serde_json::from_str(&theirs).unwrap();
            let ours: serde_json::Value =
                serde_json::from_str(&succeed(system, &["-j", "list", "ruleset"])).unwrap();
            let objects = |value: &serde_json::Value, key: &str| {
                let mut objects = value[key].as_array().unwrap()[1..].to_vec();
                objects.sort_by_key(ToString::to_string);
                objects
            };
            assert_eq!(objects(&ours, "fasttrack"), objects(&theirs, "nftables"), "{mark}");
        }
    });
}

#[test]
fn what_is_listed_can_be_loaded() {
    with_nf_tables("what_is_listed_can_be_loaded", |system| {
        for mark in MARKS {
            succeed(system, &["enable", "--mark", mark]);
            let ours = succeed(system, &["list", "ruleset"]);
            let theirs = nft(&["list", "table", "inet", "fasttrack"]);
            for listing in [ours, theirs] {
                nft(&["delete", "table", "inet", "fasttrack"]);
                nft_file(&listing).unwrap();
                assert_eq!(nft(&["list", "table", "inet", "fasttrack"]), listing, "{mark}");
                assert_eq!(succeed(system, &["list", "ruleset"]), listing, "{mark}");
            }
        }
        // Every name can be used where nft's grammar wants a name.
        let based = ["mark_decrypted", "mark_forward", "mark_encrypted", "nat_bypass"];
        for chain in based.into_iter().chain(["mark_to_device"]) {
            succeed(system, &["enable", "--mark", "1/1"]);
            nft(&["list", "chain", "inet", "fasttrack", chain]);
            nft(&["flush", "chain", "inet", "fasttrack", chain]);
            // The other one is jumped to.
            if based.contains(&chain) {
                nft(&["delete", "chain", "inet", "fasttrack", chain]);
            }
        }
    });
}

#[test]
fn twice_is_once_and_others_are_left_alone() {
    with_nf_tables("twice_is_once_and_others_are_left_alone", |system| {
        let foreign = "table inet filter {\n\tchain forward {\n\t\ttype filter hook forward priority \
                       filter; policy drop;\n\t\tct state established accept\n\t}\n}\n";
        nft_file(foreign).unwrap();
        // An ip table of the same name is another table.
        nft_file("table ip fasttrack {\n\tchain nat_bypass {\n\t\tcounter\n\t}\n}\n").unwrap();
        let others = nft(&["list", "ruleset"]);

        succeed(system, &["enable"]);
        let table = nft(&["list", "table", "inet", "fasttrack"]);
        succeed(system, &["enable"]);
        assert_eq!(nft(&["list", "table", "inet", "fasttrack"]), table);
        assert_eq!(succeed(system, &["list", "ruleset"]), table);
        // Whatever was put into the table goes with it.
        nft(&["add", "chain", "inet", "fasttrack", "mine"]);
        nft(&["add", "rule", "inet", "fasttrack", "mine", "tcp", "dport", "22", "drop"]);
        succeed(system, &["enable"]);
        assert_eq!(nft(&["list", "table", "inet", "fasttrack"]), table);

        succeed(system, &["disable"]);
        assert_eq!(nft(&["list", "ruleset"]), others);
        succeed(system, &["disable"]);
        assert_eq!(nft(&["list", "ruleset"]), others);
    });
}

#[test]
fn a_rule_of_somebody_else_is_listed_as_a_comment() {
    with_nf_tables("a_rule_of_somebody_else_is_listed_as_a_comment", |system| {
        succeed(system, &["enable"]);
        let chain = ["inet", "fasttrack", "mark_forward"];
        nft(&[&["add", "rule"], &chain[..], &["tcp", "dport", "{ 22, 80 }", "counter", "drop"]]
            .concat());
        nft(&[&["add", "rule"], &chain[..], &["counter", "return"]].concat());
        let listing = succeed(system, &["list", "ruleset"]);
        assert_eq!(listing.matches("# a rule that only nft can show").count(), 1, "{listing}");
        assert!(listing.contains("\t\tcounter packets 0 bytes 0 return\n"), "{listing}");
        nft(&["delete", "table", "inet", "fasttrack"]);
        nft_file(&listing).unwrap();
    });
}

#[test]
fn a_flushed_rule_set_is_noticed() {
    with_nf_tables("a_flushed_rule_set_is_noticed", |system| {
        succeed(system, &["list", "ruleset"]);
        succeed(system, &["enable"]);
        nft(&["flush", "ruleset"]);
        let outcome = tool(system, &["list", "ruleset"], "");
        assert_eq!((outcome.status, outcome.stdout.as_str()), (1, ""));
        assert!(outcome.stderr.contains("is gone"), "{}", outcome.stderr);
        succeed(system, &["enable"]);
        succeed(system, &["list", "ruleset"]);
        succeed(system, &["disable"]);
        assert_eq!(succeed(system, &["list", "ruleset"]), "");
    });
}

#[test]
fn without_the_module_the_table_can_still_be_removed() {
    with_nf_tables("without_the_module_the_table_can_still_be_removed", |system| {
        succeed(system, &["enable"]);
        system.world.borrow_mut().loaded = false;
        assert_eq!(tool(system, &["enable"], "").status, 3);
        assert!(nft(&["list", "ruleset"]).contains("fasttrack"));
        succeed(system, &["disable"]);
        assert_eq!(nft(&["list", "ruleset"]), "");
    });
}

#[test]
fn a_module_that_refuses_takes_the_table_along() {
    with_nf_tables("a_module_that_refuses_takes_the_table_along", |system| {
        system.world.borrow_mut().refuse_config = 1;
        assert_eq!(tool(system, &["enable"], "").status, 1);
        assert_eq!(nft(&["list", "ruleset"]), "");
    });
}

/// A table with one chain of so many rules.
fn large(rules: usize) -> Vec<Vec<u8>> {
    let (secpath, route) = (Secpath::new().unwrap(), RouteIpsec::new().unwrap());
    let mut batch = Batch::new();
    let table = Table::new(table::NAME, ProtoFamily::Inet);
    batch.add(&table, MsgType::Add);
    let chain = Chain::new(c"large", &table);
    batch.add(&chain, MsgType::Add);
    for index in 0..rules {
        let mut rule = Rule::new(&chain);
        if index % 2 == 0 {
            rule.add_expr(&secpath);
        } else {
            rule.add_expr(&route);
        }
        rule.add_expr(&nft_expr!(cmp == 1u8));
        rule.add_expr(&nft_expr!(counter));
        batch.add(&rule, MsgType::Add);
    }
    batch.finalize().iter().map(<[u8]>::to_vec).collect()
}

fn rules_of_large() -> usize {
    nft(&["list", "chain", "inet", "fasttrack", "large"]).matches(" ipsec exists").count()
}

fn pages(batch: &[Vec<u8>]) -> Vec<&[u8]> {
    batch.iter().map(Vec::as_slice).collect()
}

#[test]
fn a_transaction_of_many_pages_is_one() {
    with_nf_tables("a_transaction_of_many_pages_is_one", |_| {
        let batch = large(20_000);
        assert!(batch.len() > 10, "{} pages", batch.len());
        let mut socket = Socket::open(Bus::Netfilter).unwrap();
        let outcome = batch::send(&mut socket, &pages(&batch)).unwrap();
        // The acknowledgements need 20 MB, which only the first user namespace's root may ask for.
        assert!(matches!(outcome, Outcome::Applied | Outcome::Unknown), "{outcome:?}");
        assert_eq!(rules_of_large(), 20_000);
    });
}

/// A socket whose receive buffer stays as small as it is by default.
struct Small(Socket);

impl Transport for Small {
    fn port(&self) -> u32 {
        self.0.port()
    }

    fn send(&mut self, parts: &[&[u8]]) -> io::Result<()> {
        self.0.send(parts)
    }

    fn receive(&mut self, wait: Wait) -> io::Result<&[u8]> {
        self.0.receive(wait)
    }

    fn join(&mut self, group: u32) -> io::Result<()> {
        self.0.join(group)
    }

    fn reserve(&mut self, _bytes: usize) {}
}

#[test]
fn lost_acknowledgements_do_not_mean_that_it_failed() {
    with_nf_tables("lost_acknowledgements_do_not_mean_that_it_failed", |_| {
        let batch = large(1000);
        let socket = Socket::open(Bus::Netfilter).unwrap();
        sys::set_option(socket.as_raw_fd(), libc::SOL_SOCKET, libc::SO_RCVBUF, 106_496).unwrap();
        let mut socket = Small(socket);
        // ENOBUFS, and the rules are there all the same.
        assert_eq!(batch::send(&mut socket, &pages(&batch)).unwrap(), Outcome::Unknown);
        assert_eq!(rules_of_large(), 1000);
        // With a reserved buffer nothing is lost.
        nft(&["flush", "ruleset"]);
        let mut socket = Socket::open(Bus::Netfilter).unwrap();
        assert_eq!(batch::send(&mut socket, &pages(&large(150))).unwrap(), Outcome::Applied);
        if sys::set_option(socket.as_raw_fd(), libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, 1 << 22)
            .is_ok()
        {
            nft(&["flush", "ruleset"]);
            assert_eq!(batch::send(&mut socket, &pages(&batch)).unwrap(), Outcome::Applied);
        }
    });
}

#[test]
fn a_refused_transaction_changes_nothing_and_says_where() {
    with_nf_tables("a_refused_transaction_changes_nothing_and_says_where", |system| {
        succeed(system, &["enable"]);
        let before = nft(&["list", "ruleset"]);
        let mut batch = Batch::new();
        batch.add(&Table::new(table::NAME, ProtoFamily::Inet), MsgType::Del);
        batch.add(&Table::new(c"missing", ProtoFamily::Inet), MsgType::Del);
        batch.add(&Table::new(c"another", ProtoFamily::Inet), MsgType::Add);
        let batch = batch.finalize();
        let bytes: Vec<&[u8]> = batch.iter().collect();
        let wanted = Messages::new(bytes[0]).map(Result::unwrap).nth(2).unwrap().sequence;

        let mut socket = Socket::open(Bus::Netfilter).unwrap();
        // Returns, though the last message is never acknowledged.
        let outcome = batch::send(&mut socket, &bytes).unwrap();
        let Outcome::Refused(refusals) = outcome else { panic!("{outcome:?}") };
        let [refusal] = &refusals[..] else { panic!("{refusals:?}") };
        assert_eq!((refusal.sequence, refusal.error.errno), (wanted, libc::ENOENT));
        // The extended acknowledgement points at NFTA_TABLE_NAME.
        assert_eq!(refusal.error.offset, Some(20));
        assert_eq!(nft(&["list", "ruleset"]), before);
    });
}

#[test]
fn reading_back_gives_what_was_sent() {
    with_nf_tables("reading_back_gives_what_was_sent", |system| {
        let modes = [IpsecMode::EXCLUDE, IpsecMode::ACCELERATE];
        for (mark, ipsec) in MARKS.into_iter().flat_map(|mark| modes.map(|ipsec| (mark, ipsec))) {
            succeed(system, &["enable", "--mark", mark]);
            succeed(system, &["set", "ipsec", &ipsec.to_string()]);
            let batch = table::replacement(mark.parse::<Mark>().unwrap(), ipsec).unwrap();
            let sent = fasttrack_tool::nft::ruleset::Table::from_batch(
                &batch.iter().collect::<Vec<_>>().concat(),
            )
            .unwrap();
            let socket = Box::new(Socket::open(Bus::Netfilter).unwrap());
            let connection = fasttrack_tool::nl::Connection::new(socket);
            let found = fasttrack_tool::nft::Nft::new(connection).read().unwrap().unwrap();
            assert!(found.same_rules(&sent), "{mark}: {found:#?} {sent:#?}");
        }
    });
}

#[test]
fn a_large_rule_set_around_it_is_no_trouble() {
    with_nf_tables("a_large_rule_set_around_it_is_no_trouble", |system| {
        let rules = "\t\ttcp dport 22 counter accept\n".repeat(500);
        nft_file(&format!("table inet big {{\n\tchain c {{\n{rules}\t}}\n}}\n")).unwrap();
        succeed(system, &["enable"]);
        let listing = succeed(system, &["list", "ruleset"]);
        assert_eq!(listing, nft(&["list", "table", "inet", "fasttrack"]));
    });
}

/// A program that ends with the test, however that ends.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_rule_set_that_changes_is_read_whole() {
    with_nf_tables("a_rule_set_that_changes_is_read_whole", |system| {
        // Two tables that take each other's place, one of them with one chain only.
        let directory = std::env::temp_dir();
        let mut listings = Vec::new();
        let mut files = Vec::new();
        for mark in ["1/1", "0/0"] {
            succeed(system, &["enable", "--mark", mark]);
            let listing = succeed(system, &["list", "ruleset"]);
            let path =
                directory.join(format!("fasttrack-swap-{}-{}", files.len(), std::process::id()));
            let replace = "add table inet fasttrack\ndelete table inet fasttrack\n";
            std::fs::write(&path, format!("{replace}{listing}")).unwrap();
            listings.push(listing);
            files.push(path);
        }
        let swap = format!(
            "while :; do nft -f {}; nft -f {}; done",
            files[0].display(),
            files[1].display()
        );
        let mut noise = Command::new("sh");
        noise.args(["-c", &swap]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let other = Killed(noise.spawn().unwrap());
        let mut seen = [0, 0];
        for _ in 0..2000 {
            let outcome = tool(system, &["list", "ruleset"], "");
            // Ten tries in a row may all meet a change; a mixture may never come out.
            if outcome.status == 0 {
                let which = listings.iter().position(|listing| *listing == outcome.stdout);
                seen[which.unwrap_or_else(|| panic!("a mixture:\n{}", outcome.stdout))] += 1;
            } else {
                assert!(outcome.stderr.contains("kept changing"), "{}", outcome.stderr);
            }
        }
        drop(other);
        for file in files {
            let _ = std::fs::remove_file(file);
        }
        assert!(seen[0] + seen[1] > 0, "no reading came to an end");
    });
}
