//! The packet path as a black box: frames in, and what comes out byte for byte, with its verdict and
//! what was counted. Expected frames are laid out by etherparse, never by the code under test.

#[path = "../support/mod.rs"]
mod support;

mod admit;
mod all_ports;
mod client_address;
mod decapsulation;
mod drops;
mod fragments;
mod frames;
mod full_nat;
mod full_nat_at_once;
mod full_nat_errors;
mod full_nat_fragments;
mod full_nat_stale;
mod functions;
mod headers;
mod hearsay;
mod hops;
mod icmp;
mod l2;
mod martian;
mod mss;
mod nat;
mod neighbour;
mod passive;
mod persistence;
mod programs;
mod properties;
mod quic;
mod quoted;
mod rarities;
mod refuse;
mod relayed_errors;
mod scheduling;
mod sctp;
mod second_hop;
mod source_routes;
mod steering;
mod syn_proxy;
mod syn_proxy_beside;
mod too_big;
mod tracking;
mod tunnel_errors;
mod tunnels;
mod untouched;
mod vlan;
mod wide;

/// IANA protocol numbers.
const TCP: u8 = 6;
const UDP: u8 = 17;

const VIP4: &str = "10.0.0.1:80";
const VIP6: &str = "[2001:db8::1]:80";
const CLIENT4: &str = "192.0.2.7:40000";
const CLIENT6: &str = "[2001:db8:c::7]:40000";
const SERVER4: &str = "10.1.0.2:8080";
const SERVER6: &str = "[fd00:1::2]:8080";
