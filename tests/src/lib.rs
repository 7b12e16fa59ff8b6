//! Network-namespace harness shared by tests, playground and benchmarks.
//!
//! [`topology`] lays out a client, a balancer and backends on one segment of [`netns`] namespaces;
//! [`backend`], [`udp`], [`queue`] and [`answering`] put real servers into it, [`agent`] the programs under test, and [`load`]
//! generates traffic and says what became of it; [`stage`] is all of that around given services, and
//! [`playground`] all of it for people to try. Everything made here is unmade on drop, also after a
//! panic; what a killed run left behind is swept by the next one.

pub mod agent;
pub mod answering;
pub mod backend;
pub mod bench;
pub mod binaries;
pub mod bpffs;
pub mod capture;
pub mod config;
pub mod differential;
pub mod dissect;
pub mod dump;
pub mod fuzz;
pub mod link;
pub mod load;
pub mod netns;
pub mod pcap;
pub mod playground;
pub mod process;
pub mod queue;
pub mod servers;
pub mod skip;
pub mod soak;
pub mod stack;
pub mod stage;
pub mod topology;
pub mod udp;
pub mod wait;
pub mod wireshark;
pub mod xdp_pass;
