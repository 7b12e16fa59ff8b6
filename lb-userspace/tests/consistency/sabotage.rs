//! Invariants switched off, one at a time: what the simulation must notice, or it proves nothing.
//!
//! The product knows nothing of it: operations are bent on their way to the tables, and tables on
//! their way to the packet path.

use std::cell::Cell;

use lb_common::{
    flow::{Flow, Signal},
    memory::MemoryTables,
    packet::Packet,
    persist,
    rate::Rate,
    schedule::NOBODY,
    steer::RouteTable,
    tables::{
        AccessKey, Address, Backend, Bucket, ClassKey, Control, Datagram, Endpoint, FlowEvent,
        FlowKey, FragmentKey, GuardEntry, Handover, Handshake, Member, NoRoute, PoolKey, PortKey,
        Record, Recorded, Route, RouteQuery, Server, ServerKey, ServiceEntry, Session, Sign, Slot,
        SourceKey, Table, Tables, Tagged, Tick, Upper, VipKey, VlanKey, WayBack, flow_kind,
    },
    track::{self, Question},
    verdict::{Answer, DropReason, Piece},
};

use crate::{astray, tally::Tally};

/// What does not hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sabotage {
    /// A full table makes room by forgetting a flow.
    TableEvicts,
    /// A choice that could not be recorded is made all the same.
    UnrecordedChoiceStands,
    /// What another CPU has just recorded for the same flow is overwritten.
    OthersRecordsAreOverwritten,
    /// Flows that are not recorded belong to a moving slot's owner, not to its origin.
    OriginIsIgnored,
    /// A slot that moves while it moves forgets its origin.
    OriginIsLostByMovingAgain,
    /// A dead origin stays, and comes to life again.
    DeadOriginStays,
    /// A slot settles at once.
    SlotSettlesAtOnce,
    /// A choice that could not be recorded does not keep slots moving.
    OverflowIsForgotten,
    /// A settling slot is steady at the next sweep, whatever is recorded.
    SettlingWaitsForNobody,
    /// The sweep drops records that say what their slot's owner says while the slot still moves.
    OwnersRecordsGoWhileMoving,
    /// The sweep reads established flows before half-open ones.
    EstablishedIsReadFirst,
    /// Backends that return take flows before the rings know.
    WakesComeBeforeTheRings,
    /// A slot whose owner takes flows again stays steady.
    WokenSlotStaysSteady,
    /// A backend that fails its checks counts as dead.
    DownIsTakenForDead,
    /// A backend that is kept out for what packets show loses its flows.
    EjectedIsTakenForDead,
    /// A backend that drains or was removed loses its flows.
    LeavingBackendHoldsNothing,
    /// The entry and the id of a backend that was removed are free at the next sweep.
    LeavingBackendIsFreedAtOnce,
    /// The ring before a move of the whole service is given up at once.
    PreviousRingIsReleased,
    /// The hash fields before a move of the whole service are forgotten.
    PreviousHashIsForgotten,
    /// When slots moved does not survive a restart.
    TimesAreLostOnRestart,
    /// QUIC packets are steered by their addresses.
    ServerIdsAreIgnored,
    /// New backends are chosen before their connection ids are known.
    ServerIdsComeAfterTheirServers,
    /// A backend that was removed counts as one without connections once none of its flows is recorded.
    NamedTrafficIsOverlooked,
    /// Room is given back without waiting for packets in flight.
    GraceIsSkipped,
    /// Clients are not remembered beyond their opening packets.
    ClientsAreNotConfirmed,
    /// Clients whose new flows went elsewhere are remembered where they were.
    ClientsStayWhereTheyWere,
    /// A recorded flow whose backend is gone goes to its slot's origin.
    FlowsOfTheDeadGoToOrigin,
    /// What opens a flow is recorded among the established ones.
    OpeningsAreEstablished,
    /// A RST establishes what was opened.
    ResetsPromote,
    /// A record of a former holder of a local id counts for the present one.
    FormerHoldersOfIdsCount,
    /// What is to be in force by the switch is written into both halves, a service at a time. Only services of a
    /// group show that ([`crate::at_once`]).
    BothHalvesAreWritten,
    /// A choice that is made while the slot's owner takes no new flows is not recorded.
    ChoicesForOthersAreNotRecorded,
    /// Another scheduler, hash or flow state takes effect without the whole service moving.
    WholeMoveIsSkipped,
    /// What a sweep found is taken for true of rings that it did not begin with.
    StaleCensusIsUsed,
    /// A steady slot that moves does not have its last owner as its origin.
    SteadySlotForgetsItsOwner,
    /// Nor does a settling one.
    SettlingSlotForgetsItsOwner,
    /// The sweep drops records of others than their slot's owner.
    OthersRecordsAreSwept,
    /// Clients of every prefix go to the default subset.
    RoutesAreIgnored,
    /// The routes before a move of the whole service are forgotten.
    PreviousRoutesAreForgotten,
    /// New routes are in force before the rings that are made for them.
    RoutesComeBeforeTheRings,
    /// The sweep takes flows for those of slots that they would have without routes.
    SweepIgnoresRoutes,
}

impl Sabotage {
    /// All that a sequence shows.
    pub const ALL: [Self; 40] = [
        Self::TableEvicts,
        Self::UnrecordedChoiceStands,
        Self::OthersRecordsAreOverwritten,
        Self::OriginIsIgnored,
        Self::OriginIsLostByMovingAgain,
        Self::DeadOriginStays,
        Self::SlotSettlesAtOnce,
        Self::OverflowIsForgotten,
        Self::SettlingWaitsForNobody,
        Self::OwnersRecordsGoWhileMoving,
        Self::EstablishedIsReadFirst,
        Self::WakesComeBeforeTheRings,
        Self::WokenSlotStaysSteady,
        Self::DownIsTakenForDead,
        Self::EjectedIsTakenForDead,
        Self::LeavingBackendHoldsNothing,
        Self::LeavingBackendIsFreedAtOnce,
        Self::PreviousRingIsReleased,
        Self::PreviousHashIsForgotten,
        Self::TimesAreLostOnRestart,
        Self::ServerIdsAreIgnored,
        Self::ServerIdsComeAfterTheirServers,
        Self::NamedTrafficIsOverlooked,
        Self::GraceIsSkipped,
        Self::ClientsAreNotConfirmed,
        Self::ClientsStayWhereTheyWere,
        Self::FlowsOfTheDeadGoToOrigin,
        Self::OpeningsAreEstablished,
        Self::ResetsPromote,
        Self::FormerHoldersOfIdsCount,
        Self::ChoicesForOthersAreNotRecorded,
        Self::WholeMoveIsSkipped,
        Self::StaleCensusIsUsed,
        Self::SteadySlotForgetsItsOwner,
        Self::SettlingSlotForgetsItsOwner,
        Self::OthersRecordsAreSwept,
        Self::RoutesAreIgnored,
        Self::PreviousRoutesAreForgotten,
        Self::RoutesComeBeforeTheRings,
        Self::SweepIgnoresRoutes,
    ];

    /// What is said of a promise that is broken by it, rather than by what it does besides.
    pub fn sign(self) -> &'static str {
        match self {
            Self::GraceIsSkipped => "a packet in flight",
            Self::OthersRecordsAreOverwritten => "at once",
            Self::FlowsOfTheDeadGoToOrigin => "who takes none",
            Self::OpeningsAreEstablished | Self::ResetsPromote => "a flood",
            Self::RoutesAreIgnored => "of another subset",
            _ => " came to ",
        }
    }
}

/// The tables as the packet path sees them.
pub struct Bent<'a> {
    tables: &'a MemoryTables,
    sabotage: Option<Sabotage>,
    tally: &'a Tally,
    /// What another CPU does meanwhile, before so many more accesses to the flow tables.
    meanwhile: Option<(Cell<u64>, &'a dyn Fn())>,
    /// The owner of the flow's slot takes no new flows.
    declined: Cell<bool>,
}

impl<'a> Bent<'a> {
    /// Those of `tables`, with whatever is switched off.
    pub fn new(tables: &'a MemoryTables, sabotage: Option<Sabotage>, tally: &'a Tally) -> Self {
        Self {
            tables,
            sabotage,
            tally,
            meanwhile: None,
            declined: Cell::new(false),
        }
    }

    /// The same, while another CPU does something between two accesses to the flow tables.
    pub fn meanwhile(self, accesses: u64, act: &'a dyn Fn()) -> Self {
        let meanwhile = Some((Cell::new(accesses + 1), act));
        Self { meanwhile, ..self }
    }

    fn let_others_act(&self) {
        let Some((left, act)) = &self.meanwhile else {
            return;
        };
        left.set(left.get().saturating_sub(1));
        if left.get() == 1 {
            left.set(0);
            act();
        }
    }

    fn is(&self, sabotage: Sabotage) -> bool {
        self.sabotage == Some(sabotage)
    }

    /// Whether a client is remembered, whoever its backend is.
    fn knows(&self, question: &Question) -> bool {
        let flows = self.tables.flows.borrow();
        let mut keys = flows.established.records.keys();
        keys.any(|key| key.kind == flow_kind::CLIENT && key.source == question.key.source)
    }

    fn evict(&self, table: Table, key: &FlowKey) {
        let mut flows = self.tables.flows.borrow_mut();
        let table = flows.table(table);
        if table.records.len() >= table.capacity && !table.records.contains_key(key) {
            table.records.pop_first();
        }
    }
}

impl Tables for Bent<'_> {
    fn knows(&self, feature: u32) -> bool {
        self.tables.knows(feature)
    }

    fn uses(&self, feature: u32) -> bool {
        self.tables.uses(feature)
    }

    fn control(&self) -> Option<&Control> {
        self.tables.control()
    }

    fn generation(&self) -> u64 {
        self.tables.generation()
    }

    fn bucket(&self, index: u32) -> Option<&Bucket> {
        self.tables.bucket(index)
    }

    fn service_entry(&self, index: u32) -> Option<&ServiceEntry> {
        self.tables.service_entry(index)
    }

    fn slots(&self, index: u32) -> Option<u64> {
        let pair = self.tables.slots(index)?;
        if !self.is(Sabotage::OriginIsIgnored) {
            return Some(pair);
        }
        let bent = |slot: Slot| u64::from(Slot::new(slot.owner(), slot.owner(), slot.phase()).0);
        Some(bent(Slot(pair as u32)) | (bent(Slot((pair >> 32) as u32)) << 32))
    }

    fn member(&self, index: u32) -> Option<&Member> {
        self.tables.member(index)
    }

    fn backend(&self, index: u32) -> Option<&Backend> {
        self.tables.backend(index)
    }

    fn way_back(&self, key: &Endpoint) -> Option<WayBack> {
        self.tables.way_back(key)
    }

    fn may_answer(&self, answer: Answer) -> bool {
        self.tables.may_answer(answer)
    }

    fn hand_over(&self, handover: Handover) {
        self.tables.hand_over(handover);
    }

    fn handed_over(&self) -> Handover {
        self.tables.handed_over()
    }

    fn server(&self, key: &ServerKey) -> Option<Server> {
        let server = self.tables.server(key)?;
        (!self.is(Sabotage::ServerIdsAreIgnored)).then_some(server)
    }

    fn class(&self, key: &VipKey) -> [u32; 2] {
        self.tables.class(key)
    }

    fn class_port(&self, key: &ClassKey) -> u32 {
        self.tables.class_port(key)
    }

    fn owned(&self, address: &Address) -> u32 {
        self.tables.owned(address)
    }

    fn hardware_address(&self, interface: u32) -> Option<[u8; 6]> {
        self.tables.hardware_address(interface)
    }

    fn tagged(&self) -> Option<Tagged> {
        self.tables.tagged()
    }

    fn note_tags(&self, tagged: &Tagged) {
        self.tables.note_tags(tagged);
    }

    fn vlan(&self, key: &VlanKey) -> Option<u32> {
        self.tables.vlan(key)
    }

    fn upper(&self, interface: u32) -> Option<&Upper> {
        self.tables.upper(interface)
    }

    fn route(&self, query: &RouteQuery) -> Result<Route, NoRoute> {
        self.tables.route(query)
    }

    fn count_service(&self, index: u32, bytes: u64, new_flow: bool) {
        self.tables.count_service(index, bytes, new_flow);
    }

    fn count_backend(&self, backend: &Backend, bytes: u64, new_flow: bool) {
        self.tables.count_backend(backend, bytes, new_flow);
    }

    fn count_drop(&self, reason: DropReason) {
        self.tables.count_drop(reason);
    }

    fn count_answer(&self, answer: Answer) {
        self.tables.count_answer(answer);
    }

    fn guards(&self, pool: u32) -> Option<&GuardEntry> {
        self.tables.guards(pool)
    }

    fn access(&self, key: &AccessKey) -> u32 {
        self.tables.access(key)
    }

    fn take_of_source(&self, key: &SourceKey, rate: &Rate) -> bool {
        self.tables.take_of_source(key, rate)
    }

    fn take_of_service(&self, service: u32, rate: &Rate) -> bool {
        self.tables.take_of_service(service, rate)
    }

    fn take_of_unproxied(&self, service: u32, rate: &Rate) -> bool {
        self.tables.take_of_unproxied(service, rate)
    }

    fn cookie(&self, flow: &Flow, sequence: u32, mss: u16) -> Option<(u32, u16)> {
        self.tables.cookie(flow, sequence, mss)
    }

    fn is_cookie(&self, flow: &Flow, sequence: u32, cookie: u32) -> bool {
        self.tables.is_cookie(flow, sequence, cookie)
    }

    fn now(&self) -> Tick {
        self.tables.now()
    }

    fn visit<R>(
        &self,
        table: Table,
        key: &FlowKey,
        visit: impl FnOnce(&mut Record) -> R,
    ) -> Option<R> {
        self.let_others_act();
        if !self.is(Sabotage::FormerHoldersOfIdsCount) {
            return self.tables.visit(table, key, visit);
        }
        let known = astray::recorded(self.tables, table, key);
        let present = known.and_then(|known| astray::present_generation(self.tables, key, &known));
        self.tables.visit(table, key, |record| {
            let own = record.generation;
            record.generation = present.unwrap_or(own);
            let seen = visit(record);
            record.generation = own;
            seen
        })
    }

    fn record(&self, table: Table, key: &FlowKey, record: &Record, over: bool) -> Recorded {
        if self.is(Sabotage::TableEvicts) {
            self.evict(table, key);
        }
        self.let_others_act();
        let over = over || self.is(Sabotage::OthersRecordsAreOverwritten);
        let known = |table| astray::recorded(self.tables, table, key);
        let half_open = known(Table::HalfOpen);
        if self.declined.get() && half_open.or_else(|| known(Table::Established)).is_none() {
            return Recorded::Done;
        }
        let (mut table, mut record) = (table, *record);
        if self.is(Sabotage::OpeningsAreEstablished) && key.kind == flow_kind::FLOW {
            table = Table::Established;
        }
        if self.is(Sabotage::FormerHoldersOfIdsCount)
            && table == Table::Established
            && let Some(promoted) = half_open.filter(|known| known.member == record.member)
        {
            record.generation = promoted.generation;
        }
        let recorded = self.tables.record(table, key, &record, over);
        let held = self.tables.flows.borrow_mut().table(table).records.len() as u64;
        self.tally.peak.set(self.tally.peak.get().max(held));
        match recorded {
            Recorded::Full if self.is(Sabotage::UnrecordedChoiceStands) => Recorded::Done,
            recorded => recorded,
        }
    }

    fn forget(&self, table: Table, key: &FlowKey) {
        self.let_others_act();
        self.tables.forget(table, key);
    }

    fn visit_session<R>(&self, key: &FlowKey, visit: impl FnOnce(&mut Session) -> R) -> Option<R> {
        self.tables.visit_session(key, visit)
    }

    fn clear_flags(&self, record: &mut Record, flags: u16) -> u16 {
        self.tables.clear_flags(record, flags)
    }
    fn set_flags(&self, record: &mut Record, flags: u16) -> u16 {
        self.tables.set_flags(record, flags)
    }
    fn remove_session(&self, key: &FlowKey) {
        self.tables.remove_session(key);
    }
    fn hand_port_on(&self, key: &PortKey, flow: &FlowKey) -> bool {
        self.tables.hand_port_on(key, flow)
    }
    fn put_session(&self, key: &FlowKey, session: &Session) -> Recorded {
        self.tables.put_session(key, session)
    }

    fn port(&self, key: &PortKey) -> Option<FlowKey> {
        self.tables.port(key)
    }

    fn claim_port(&self, key: &PortKey, flow: &FlowKey) -> Recorded {
        self.tables.claim_port(key, flow)
    }

    fn release_port(&self, key: &PortKey) {
        self.tables.release_port(key);
    }

    fn pool_address(&self, key: &PoolKey) -> Option<Address> {
        self.tables.pool_address(key)
    }

    fn count_flow(&self, service: u32, event: FlowEvent) {
        let counter = match event {
            FlowEvent::Lookup => Some(&self.tally.lookups),
            FlowEvent::Overflow | FlowEvent::ClientOverflow => Some(&self.tally.overflows),
            FlowEvent::Named => Some(&self.tally.named),
            FlowEvent::PromotionOverflow => Some(&self.tally.unpromoted),
            FlowEvent::Recorded
            | FlowEvent::Denied
            | FlowEvent::SourceLimit
            | FlowEvent::ServiceLimit
            | FlowEvent::PortsExhausted
            | FlowEvent::Untold
            | FlowEvent::CookieSent
            | FlowEvent::CookieValid
            | FlowEvent::CookieInvalid => None,
        };
        if let Some(counter) = counter {
            counter.set(counter.get() + 1);
        }
        self.tables.count_flow(service, event);
    }

    fn load(&self, counters: u32) -> u32 {
        self.tables.load(counters)
    }

    fn add_load(&self, counters: u32, change: i32) {
        self.tables.add_load(counters, change);
    }

    fn turn(&self, pool: u32) -> u32 {
        self.tables.turn(pool)
    }

    fn subset(&self, source: Address, table: RouteTable) -> u32 {
        match self.is(Sabotage::RoutesAreIgnored) {
            true => 0,
            false => self.tables.subset(source, table),
        }
    }

    fn track(&self, question: &Question) -> u32 {
        let ask = |question: &Question| {
            track::settle(|over| {
                let question = Question { over, ..*question };
                track::answer(self, &question)
            })
        };
        if let Some(sabotage) = self.sabotage
            && let Some(index) = astray::answer(self.tables, question, sabotage)
        {
            return index;
        }
        if self.is(Sabotage::ResetsPromote) && question.signal == Signal::Resets {
            let signal = Signal::None;
            ask(&Question {
                signal,
                ..*question
            });
        }
        let declined = self.is(Sabotage::ChoicesForOthersAreNotRecorded)
            && astray::declines(self.tables, question);
        self.declined.set(declined);
        let index = ask(question);
        self.declined.set(false);
        index
    }

    fn exact_now(&self) -> u64 {
        self.tables.exact_now()
    }

    fn comes_by(&self, counters: u32) -> u32 {
        self.tables.comes_by(counters)
    }

    fn add_sign(&self, counters: u32, sign: Sign, amount: u64) {
        self.tables.add_sign(counters, sign, amount);
    }

    fn end_streak(&self, counters: u32) {
        self.tables.end_streak(counters);
    }

    fn visit_handshake<R>(&self, place: u32, visit: impl FnOnce(&mut Handshake) -> R) -> Option<R> {
        self.tables.visit_handshake(place, visit)
    }

    fn remember(&self, question: &Question, id: u32) {
        let known = persist::recall(self, question) != NOBODY || self.knows(question);
        if !(known && self.is(Sabotage::ClientsStayWhereTheyWere)) {
            persist::remember(self, question, id);
        }
    }

    fn count_piece(&self, piece: Piece) {
        self.tables.count_piece(piece);
    }

    fn visit_datagram<R>(
        &self,
        key: &FragmentKey,
        visit: impl FnOnce(&mut Datagram) -> R,
    ) -> Option<R> {
        self.tables.visit_datagram(key, visit)
    }

    fn note_datagram(&self, key: &FragmentKey, fill: impl FnOnce(&mut Datagram)) {
        self.tables.note_datagram(key, fill);
    }

    fn hold<P: Packet>(&self, packet: &P, key: &FragmentKey, offset: u32) -> bool {
        self.tables.hold(packet, key, offset)
    }

    fn confirm(&self, question: &Question, id: u32) {
        if !self.is(Sabotage::ClientsAreNotConfirmed) {
            persist::confirm(self, question, id);
        }
    }
}
