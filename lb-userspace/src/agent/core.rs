//! The agent without its loop: every piece of news becomes a plan, every plan is carried out, and
//! only then is it what the agent knows. Synchronous; the dataplane tells the time.

mod adaptive;
mod announce;
mod asked;
mod checked;
mod damping;
mod drain;
mod forced;
mod history;
mod known;
mod loads;
mod meanwhile;
mod outliers;
mod panic;
mod planned;
mod pools;
mod rates;
mod slow_start;
mod standby;
mod standing;
mod status;
mod targets;
mod ways;
mod weights;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::IpAddr,
    sync::Arc,
    time::Duration,
};

use lb_common::tables::{Tick, state};
use tokio::time::Instant;

pub use self::drain::Teller;
use self::{
    announce::Announcing,
    drain::Stills,
    known::{Down, Known},
    meanwhile::{AT_A_TIME, Heard, Inbox, Marks},
    planned::{Given, Planned},
    pools::Pools,
    standing::Told,
    ways::NoWays,
};
use super::{ChangeError, history::History};
use crate::{
    config::Tunnel,
    dataplane::{Capacity, Dataplane, DataplaneError, FlowTables},
    model::{
        AddressPool, Change, ModelError, Service, ServiceId, State, UNKNOWN_PORT, Unserved, Vlans,
    },
    neighbours::{NextHop, Update},
    plan::{
        self, Devices, Inputs, Layout, Plan,
        census::{self, Census},
        features, listing,
    },
    snapshot::{ClientList, FlowFilter, FlowList, InterfaceStatus},
};

/// Sweeps in a moving time.
const SWEEPS: u32 = 8;
/// Bounds of the time between sweeps.
const SHORTEST_SWEEP: Duration = Duration::from_millis(500);
const LONGEST_SWEEP: Duration = Duration::from_secs(30);
/// From one sweep to the next while a backend says that it has no flow left.
const PROOF: Duration = Duration::from_secs(2);
/// Where the next sweep is wanted sooner than usual: at least so long after the last, and so many times as
/// long as that took, so that no more than a fifth of a processor's time goes into such sweeps.
const SHORTEST_PAUSE: Duration = Duration::from_millis(50);
const PAUSES: u32 = 4;

/// Plans in a row by which backends get new entries where there is room for few at a time.
const MOST_PLANS: usize = 16;

/// How far a plan goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    Whole,
    /// Some backends keep their entries until others are given up.
    Partly,
}

/// A sweep of the flow tables, to be run beside the loop.
pub struct Sweep {
    layout: Arc<Layout>,
    tables: Box<dyn FlowTables + Send>,
    now: Tick,
}

impl Sweep {
    /// Runs it; takes as long as the tables are large.
    ///
    /// # Errors
    /// The tables cannot be read or written.
    pub fn run(mut self) -> Result<Census, DataplaneError> {
        census::sweep(&self.layout, self.tables.as_mut(), self.now)
    }

    /// Lists recorded flows instead.
    ///
    /// # Errors
    /// The tables cannot be read.
    pub fn list(mut self, filter: &FlowFilter) -> Result<FlowList, DataplaneError> {
        listing::flows(&self.layout, self.tables.as_mut(), filter, self.now)
    }

    /// Lists remembered clients.
    ///
    /// # Errors
    /// The tables cannot be read.
    pub fn clients(mut self, filter: &FlowFilter) -> Result<ClientList, DataplaneError> {
        listing::clients(&self.layout, self.tables.as_mut(), filter, self.now)
    }
}

/// What the agent knows, and the maps that it writes.
#[derive(Debug)]
pub struct Core<D> {
    instance: String,
    interfaces: Vec<InterfaceStatus>,
    tunnel: Tunnel,
    unknown_port: Unserved,
    dataplane: D,
    layout: Arc<Layout>,
    /// The maps may hold something else than `layout` says.
    unread: bool,
    /// A plan was begun and did not come to its end, nor has one since.
    behind: bool,
    /// Where news of checks comes in, if it is listened to.
    inbox: Option<Inbox>,
    /// What of it came while the agent was about something else.
    heard: Heard,
    /// When what packets show is looked at next, if anybody wants it.
    next_watch: Instant,
    /// What the plan that is under way must not give back.
    marks: Marks,
    /// What the last plan was made of.
    planned: Planned,
    state: Arc<State>,
    /// The state has been asked for. Until then, what serves in the maps is not to be taken for unwanted.
    told: bool,
    /// The state was edited since the maps were written.
    edited: bool,
    /// What was told of backends, and what is to be.
    chronicle: Told,
    /// What is known of backends.
    known: Known,
    /// Who takes no new flows in the maps.
    stills: Stills,
    /// What the agent before this one knew, until the state is told.
    former: Option<History<Tick>>,
    /// The state as that would have it, where that is another.
    adapted: Option<Arc<State>>,
    census: Census,
    /// The plan after the last sweep has settled slots.
    has_settled: bool,
    next_hops: Arc<BTreeMap<IpAddr, NextHop>>,
    /// Addresses that are known to have none.
    no_ways: NoWays,
    own_addresses: Arc<BTreeSet<IpAddr>>,
    /// What VIPs are announced by.
    announcing: Announcing,
    /// Devices that stand over others.
    devices: Devices,
    /// Which of them, and which tags, are made something of.
    vlans: Vlans,
}

impl<D: Dataplane> Core<D> {
    /// Takes up the maps as they are; backends that were down in them still are.
    ///
    /// # Errors
    /// The maps cannot be read or repaired.
    pub fn new(instance: String, tunnel: Tunnel, dataplane: D) -> Result<Self, DataplaneError> {
        let mut core = Self {
            instance,
            interfaces: Vec::new(),
            tunnel,
            unknown_port: UNKNOWN_PORT,
            layout: Arc::new(Layout::new(dataplane.capacity())),
            unread: true,
            behind: false,
            inbox: None,
            heard: Heard::default(),
            next_watch: Instant::now(),
            marks: Marks::default(),
            planned: Planned::default(),
            dataplane,
            state: Arc::default(),
            told: false,
            edited: false,
            chronicle: Told::default(),
            known: Known::default(),
            stills: Stills::default(),
            former: None,
            adapted: None,
            census: Census::default(),
            has_settled: false,
            next_hops: Arc::default(),
            no_ways: NoWays::default(),
            own_addresses: Arc::default(),
            announcing: Announcing::default(),
            devices: Devices::default(),
            vlans: Vlans::default(),
        };
        core.adopt()?;
        // Flows of services that the former agent removed last, before their indices are used again.
        match core.sweep() {
            Ok(sweep) => {
                let census = sweep.run()?;
                if let Err(error) = core.take_off(&census) {
                    tracing::warn!(%error, "flows in progress are counted too high until sweeps correct it");
                }
            }
            Err(error) => tracing::warn!(%error, "the flow tables cannot be swept yet"),
        }
        let since = core.dataplane.now();
        for (id, _, placed) in core.layout.services() {
            for (_, member) in placed.members() {
                // Or drained: what is wanted will tell.
                if member.backend.state & state::TAKES == 0 {
                    let found = member.backend.state & state::HOLDS != 0;
                    let down = Down {
                        since,
                        dead: !found,
                        gone: false,
                        found,
                        new: false,
                        failing: false,
                    };
                    core.known.down.insert((id, member.address()), down);
                }
            }
        }
        Ok(core)
    }

    fn adopt(&mut self) -> Result<(), DataplaneError> {
        self.unread = true;
        self.planned = Planned::default();
        let (mut layout, repairs) = Layout::adopt(&self.dataplane)?;
        self.dataplane.execute(&repairs)?;
        layout.remember(&self.layout);
        self.take_on(layout);
        self.unread = false;
        Ok(())
    }

    /// Says where the program is attached.
    pub fn set_interfaces(&mut self, interfaces: Vec<InterfaceStatus>) {
        self.attend(interfaces.iter().map(|interface| interface.name.clone()));
        self.interfaces = interfaces;
    }

    /// Says that what is about to be wanted is not what the maps were written for: weights that differ do so for that, and not
    /// since they follow how backends fare, or grow.
    pub fn begin_edited(&mut self) {
        self.edited = true;
    }

    /// Whether weights in the maps go on from where an agent before this one has left them.
    fn resumes(&self) -> bool {
        !self.told && !self.edited
    }

    /// What is wanted.
    pub fn state(&self) -> &State {
        &self.state
    }

    /// What the maps hold.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// The maps.
    pub fn dataplane(&self) -> &D {
        &self.dataplane
    }

    /// The maps, for tests that set their clock.
    pub fn dataplane_mut(&mut self) -> &mut D {
        &mut self.dataplane
    }

    /// Applies a change, in the kernel too.
    ///
    /// # Errors
    /// Why not; nothing changed then, unless the maps cannot even be put back: [`Core::is_behind`].
    pub fn change(&mut self, change: Change) -> Result<(), ChangeError> {
        let released = match change {
            Change::FailOver(id, _) => Some(id),
            _ => None,
        };
        // A new configuration means what it says; a setting is not worth a connection.
        let keeps_flows = matches!(change, Change::EditService(..) | Change::AddBackend(..));
        let next = self.state.apply(change)?;
        let before = std::mem::replace(&mut self.state, Arc::new(next));
        let known = self.known.clone();
        let untold = self.chronicle.untold();
        self.follow_leads(&before);
        self.take_up_history();
        self.forget_drained(&before);
        self.follow_admin(&before);
        if let Some(id) = released {
            self.known.tiers.release(self.state.lead(id));
        }
        self.keep_heard(true);
        if let Err(error) = self.enforce_after(None, keeps_flows) {
            (self.state, self.known) = (before, known);
            self.chronicle.unsay(untold);
            self.hear_again();
            self.adapt();
            self.put_back();
            return Err(error);
        }
        self.keep_heard(false);
        (self.told, self.former) = (true, None);
        self.chronicle.touch_all();
        self.known.retain(&self.keys());
        Ok(())
    }

    /// Undoes what a refused change has written.
    fn put_back(&mut self) {
        if !self.behind || !self.told {
            return;
        }
        if let Err(error) = self.enforce() {
            tracing::error!(%error, "what is left of a refused change cannot be undone yet");
        }
    }

    /// Whether the maps may not be what is wanted: a plan did not come to its end, and
    /// [`Core::enforce`] is to be tried again.
    pub fn is_behind(&self) -> bool {
        self.behind
    }

    /// Taken up from the maps, a backend that took no flows may have been down, drained or on standby; what
    /// is wanted of it now that it is known tells which.
    fn forget_drained(&mut self, before: &State) {
        let (state, layout) = (&self.state, &self.layout);
        let (mut before, mut after) = (Pools::of(before), Pools::of(state));
        let mut spare: HashMap<ServiceId, BTreeSet<u8>> = HashMap::new();
        self.known.down.retain(|&key, down| {
            let Some(backend) = after.backend(key) else {
                return true;
            };
            if down.dead || before.backend(key).is_some() {
                return true;
            }
            let spare = spare.entry(key.0).or_insert_with(|| {
                let placed = layout.placed(key.0).zip(state.service(key.0));
                placed.map_or_else(BTreeSet::new, |(placed, service)| {
                    standby::spare(service, placed)
                })
            });
            backend.is_wanted() && !spare.contains(&backend.tier)
        });
    }

    /// Makes the maps what is wanted and known. Does nothing where they are.
    ///
    /// # Errors
    /// The maps have no room: nothing has changed then. Or the kernel refuses: what was done until then is
    /// in the maps, and true by itself.
    pub fn enforce(&mut self) -> Result<(), ChangeError> {
        self.enforce_after(None, false)
    }

    fn enforce_after(
        &mut self,
        census: Option<&Census>,
        keeps_flows: bool,
    ) -> Result<(), ChangeError> {
        let done = self.enforce_once(census, keeps_flows);
        // What no person has asked for may not stand in the way of everything else.
        if matches!(done, Err(ChangeError::NoRoom(_))) && self.known.adapting.take_back() {
            return self.enforce_once(census, keeps_flows);
        }
        if done.is_ok() {
            self.known.adapting.settle();
        }
        done
    }

    fn enforce_once(
        &mut self,
        census: Option<&Census>,
        keeps_flows: bool,
    ) -> Result<(), ChangeError> {
        if self.unread {
            let adopted = self.adopt();
            adopted.map_err(|error| ChangeError::Kernel(error.to_string()))?;
        }
        self.heard.turned = false;
        self.adapt();
        let mut done = self.attempt(census, keeps_flows)?;
        if let Err(error @ DataplaneError::Overtaken(_)) = &done {
            tracing::debug!(%error, "slots go on moving");
            // The next plan knows of what came in between, and so waits with what it overtook.
            done = self.attempt(census, keeps_flows)?;
        }
        for _ in 0..MOST_PLANS {
            match done {
                Ok(Outcome::Partly) => done = self.attempt(None, keeps_flows)?,
                _ => break,
            }
        }
        match done {
            Ok(Outcome::Whole) => Ok(()),
            Ok(Outcome::Partly) => {
                // More of it with every plan that is made anyway, such as after a sweep.
                tracing::warn!(
                    "not all backends have their new next hops yet for want of room: raise `backends` under [limits]"
                );
                Ok(())
            }
            Err(error) => Err(ChangeError::Kernel(error.to_string())),
        }
    }

    /// After a plan that failed: how far it came is in the maps themselves.
    fn read_back(&mut self, error: &DataplaneError) -> Result<(), ChangeError> {
        self.adopt().map_err(|worse| {
            tracing::error!(%worse, "the maps cannot be read back");
            ChangeError::Kernel(error.to_string())
        })
    }

    /// Makes a plan and carries it out; the inner error is the dataplane's, after which the maps have been
    /// read back.
    fn attempt(
        &mut self,
        census: Option<&Census>,
        keeps_flows: bool,
    ) -> Result<Result<Outcome, DataplaneError>, ChangeError> {
        // From here on, what is heard is news to the plan.
        self.marks = Marks::default();
        let before = std::mem::take(&mut self.planned);
        let down = self.liveness();
        let (overflows, traffic) = if census.is_some() {
            (self.overflows()?, self.traffic()?)
        } else {
            Default::default()
        };
        let given = self.given();
        let changed = before.changed(&given, &down);
        let changed = changed.filter(|_| census.is_none() && !keeps_flows);
        let inputs = Inputs {
            links: &given.links,
            devices: &given.devices,
            vlans: given.vlans,
            state: &given.state,
            down: &down,
            next_hops: &given.next_hops,
            no_ways: &given.no_ways,
            own_addresses: &given.own_addresses,
            tunnel: self.tunnel,
            unknown_port: given.unknown_port,
            now: self.dataplane.now(),
            census,
            overflows: &overflows,
            traffic: &traffic,
            sampling: &given.sampling,
            keeps_flows,
            only: changed.as_ref(),
        };
        let plan = self.make(&Arc::clone(&self.layout), &inputs)?;
        if plan.features & !self.dataplane.features() != 0 {
            return Err(ChangeError::NotLoaded(plan.features));
        }
        let done = self.carry_out(plan);
        match &done {
            Ok(Outcome::Whole) => self.planned.end(given, &down),
            Ok(Outcome::Partly) => {}
            Err(error) => self.read_back(error)?,
        }
        Ok(done)
    }

    /// What a plan is made of now.
    fn given(&self) -> Given {
        // What the network has may not stand in the way of failures while programs are loaded for it.
        let takes_tags = self.lacks() == 0;
        let devices = takes_tags.then(|| self.devices.clone());
        Given {
            state: Arc::clone(self.adapted.as_ref().unwrap_or(&self.state)),
            next_hops: Arc::clone(&self.next_hops),
            own_addresses: Arc::clone(&self.own_addresses),
            no_ways: self.no_ways.counting(),
            links: self.announcing.links(),
            devices: devices.unwrap_or_default(),
            vlans: takes_tags && self.vlans == Vlans::On,
            unknown_port: self.unknown_port,
            sampling: self.known.outliers.sampling.clone(),
        }
    }

    fn carry_out(&mut self, mut plan: Plan) -> Result<Outcome, DataplaneError> {
        self.behind = true;
        self.marks.expect(&plan.operations);
        let [aside, rest] = plan.take_steps();
        self.execute_of(aside, &mut plan.layout)?;
        // Planning and writing have taken their time, and this may be the last that the agent does.
        self.restamp(&mut plan)?;
        self.execute_of(rest, &mut plan.layout)?;
        self.restamp(&mut plan)?;
        self.keep_marks(&mut plan.layout)?;
        self.take_on(plan.layout);
        self.behind = false;
        Ok(match plan.put_off {
            0 => Outcome::Whole,
            _ => Outcome::Partly,
        })
    }

    /// The maps hold this now.
    fn take_on(&mut self, layout: Layout) {
        let now = self.dataplane.now();
        self.stills.follow(&self.layout, &layout, now);
        self.layout = Arc::new(layout);
    }

    fn restamp(&mut self, plan: &mut Plan) -> Result<(), DataplaneError> {
        let writes = plan.restamp(self.dataplane.now());
        self.execute_of(writes, &mut plan.layout)
    }

    fn overflows(&mut self) -> Result<BTreeMap<u32, u64>, ChangeError> {
        let services = self.layout.services().map(|(_, index, _)| index);
        self.read_counts(services.collect(), |dataplane, index| {
            Ok(dataplane.flow_counters(index)?.overflows)
        })
    }

    /// Each is a call of the kernel: news is taken in meanwhile.
    fn read_counts(
        &mut self,
        indices: Vec<u32>,
        read: impl Fn(&D, u32) -> Result<u64, DataplaneError>,
    ) -> Result<BTreeMap<u32, u64>, ChangeError> {
        let mut counts = BTreeMap::new();
        for indices in indices.chunks(AT_A_TIME) {
            for &index in indices {
                let count = read(&self.dataplane, index);
                let count = count.map_err(|error| ChangeError::Kernel(error.to_string()))?;
                counts.insert(index, count);
            }
            self.hear_meanwhile();
        }
        Ok(counts)
    }

    /// Packets so far of backends that take no new flows, where records of flows do not tell ([`Inputs::traffic`]).
    fn traffic(&mut self) -> Result<BTreeMap<u32, u64>, ChangeError> {
        let pools = self.layout.pools.values();
        let untold = pools.filter(|placed| placed.descriptor.quic != 0 || placed.takes_none());
        let left = untold.flat_map(|placed| {
            let members = placed.members();
            members.filter(|(_, member)| member.backend.state & state::TAKES == 0)
        });
        let left = left.map(|(_, member)| member.backend.counters).collect();
        self.read_counts(left, |dataplane, index| {
            Ok(dataplane.backend_counters(index)?.packets)
        })
    }

    /// How long after one sweep of the flow tables the next is due: a fraction of the shortest moving
    /// time, so that slots settle in time.
    pub fn sweep_interval(&self) -> Duration {
        let times = self.state.services().map(Service::moving_time);
        let shortest = times.filter(|time| !time.is_zero()).min();
        shortest.map_or(LONGEST_SWEEP, |time| {
            (time / SWEEPS).clamp(SHORTEST_SWEEP, LONGEST_SWEEP)
        })
    }

    /// The same after a sweep that took so long: sooner where slots can settle then, or have just done so
    /// and can come to rest.
    pub fn next_sweep(&self, took: Duration) -> Duration {
        let now = self.dataplane.now();
        let pools = self.layout.pools.values();
        let wanted = match self.has_settled {
            true => Some(0),
            false => pools.filter_map(|placed| placed.moves_for(now)).min(),
        };
        let soonest = SHORTEST_PAUSE.max(took * PAUSES);
        let wanted = wanted.map_or(Duration::MAX, plan::duration);
        let wanted = match self.awaits_proof() {
            true => wanted.min(PROOF),
            false => wanted,
        };
        wanted.max(soonest).min(self.sweep_interval())
    }

    /// What a sweep of the flow tables goes by: what the maps hold, read once more where a plan came to
    /// an unknown end. A sweep by less would take records of backends that it does not know for stale.
    ///
    /// # Errors
    /// The maps cannot be read or repaired.
    pub fn certain_layout(&mut self) -> Result<Arc<Layout>, DataplaneError> {
        if self.unread {
            self.adopt()?;
        }
        Ok(Arc::clone(&self.layout))
    }

    /// A sweep of the flow tables as the maps are now.
    ///
    /// # Errors
    /// The maps cannot be read, or the kernel gives no handles of the tables.
    pub fn sweep(&mut self) -> Result<Sweep, DataplaneError> {
        Ok(Sweep {
            layout: self.certain_layout()?,
            tables: self.dataplane.flow_tables()?,
            now: self.dataplane.now(),
        })
    }

    /// Lets slots and leaving backends go on as a sweep allows.
    ///
    /// # Errors
    /// As [`Core::enforce`].
    pub fn swept(&mut self, census: Census) -> Result<(), ChangeError> {
        let taken_off = self.take_off(&census);
        let before = self.slots_settled();
        let done = self.enforce_after(Some(&census), false);
        self.has_settled = self.slots_settled() != before;
        let corrected = self.correct_loads(&census);
        self.census = census;
        done.and(taken_off).and(corrected)
    }

    /// Slots that have ever settled, of all pools.
    fn slots_settled(&self) -> u64 {
        let pools = self.layout.pools.values();
        pools.map(|placed| placed.passed.settling).sum()
    }

    /// Takes backends for dead that have been down for too long, lets those in that were kept out for long enough, and
    /// sees who has waited long enough for their failback, or for a way; true where the maps must follow by
    /// [`Core::enforce`].
    pub fn age(&mut self) -> bool {
        let dead = self.mark_the_long_down();
        for &key in &dead {
            self.chronicle.touch(key);
        }
        self.mark(&dead);
        let released = self.release();
        let missed = self.miss_ways();
        missed || released || !dead.is_empty() || self.failback_is_due()
    }

    /// Says which address pools services may have, before there are any services.
    ///
    /// # Errors
    /// Pools that have an address in common.
    pub fn offer_pools(
        &mut self,
        pools: impl IntoIterator<Item = AddressPool>,
    ) -> Result<(), ModelError> {
        self.state = Arc::new(State::with_pools(pools, [], [])?);
        Ok(())
    }

    /// Says what packets get to ports of VIPs that no service has, as of the next change.
    pub fn refuse_unknown_ports(&mut self, refusal: Unserved) {
        self.unknown_port = refusal;
    }

    /// What the network needs that the programs are not loaded for: bits of [`lb_common::tables::feature`].
    pub fn lacks(&self) -> u32 {
        let vlans = self.vlans == Vlans::On;
        let needed = features::of_network(&self.devices, vlans, self.state.services());
        needed & !self.dataplane.features()
    }

    /// Says what is made of VLAN tags, before anything is known of the network.
    pub fn set_vlans(&mut self, vlans: Vlans) {
        self.vlans = vlans;
    }

    /// Takes note of news about the network; true where the maps must follow by [`Core::enforce`].
    pub fn network(&mut self, update: Update) -> bool {
        match update {
            Update::OwnAddresses(addresses) => {
                let (found, most) = (addresses.len(), Capacity::OWN_ADDRESSES);
                if found > most as usize {
                    tracing::warn!(
                        found,
                        most,
                        "answers to some addresses of this host may be rewritten"
                    );
                }
                let changed = *self.own_addresses != addresses;
                self.own_addresses = Arc::new(addresses);
                changed
            }
            Update::Ports(ports) => {
                let devices = Devices::wanted(self.vlans, &ports, self.announcing.attended());
                let changed = std::mem::replace(&mut self.devices, devices);
                let left_out = self.devices.left_out;
                if left_out != changed.left_out && left_out > 0 {
                    tracing::warn!(
                        left_out,
                        "there are more VLAN devices and bonds than there is room for: what is routed by these is lost"
                    );
                }
                let moved = self.announcing.set_ports(ports);
                moved || changed != self.devices
            }
            Update::NextHop {
                address,
                next_hop: Some(next_hop),
                ..
            } => {
                let missed = self.no_ways.find(address);
                if missed {
                    self.chronicle.touch_all();
                }
                let hops = Arc::make_mut(&mut self.next_hops);
                hops.insert(address, next_hop) != Some(next_hop) || missed
            }
            Update::NextHop {
                address,
                next_hop: None,
                reason,
            } => {
                let reason = reason.unwrap_or_default();
                tracing::warn!(%address, reason, "no next hop");
                self.no_ways.miss(address, reason, self.dataplane.now());
                Arc::make_mut(&mut self.next_hops)
                    .remove(&address)
                    .is_some()
            }
            Update::Forgotten(addresses) => {
                // One that is wanted again is about to be told anew.
                let wanted = self.watched();
                for address in addresses.difference(&wanted) {
                    Arc::make_mut(&mut self.next_hops).remove(address);
                    self.no_ways.find(*address);
                }
                false
            }
        }
    }

    /// Whose next hops matter: every backend's address, also of those that leave and have flows left.
    pub fn watched(&self) -> BTreeSet<IpAddr> {
        let placed = self.layout.pools.values();
        let members = placed.flat_map(|placed| placed.members());
        let mut watched: BTreeSet<IpAddr> =
            members.map(|(_, member)| member.address().ip()).collect();
        watched.extend(self.addresses());
        watched
    }

    /// Every wanted backend's address.
    pub fn addresses(&self) -> BTreeSet<IpAddr> {
        let backends = self.state.services().flat_map(|service| &service.backends);
        backends.map(|backend| backend.address.ip()).collect()
    }

    /// Addresses whose next hop is not known yet.
    pub fn unresolved(&self) -> BTreeSet<IpAddr> {
        self.addresses()
            .into_iter()
            .filter(|address| !self.next_hops.contains_key(address))
            .collect()
    }
}
