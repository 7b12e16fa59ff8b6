//! What goes on while a plan is made and carried out, which takes as long as the kernel's waits for packets in flight: news of
//! checks is taken in all the same, what packets show is looked at, and failures take effect at once.
//!
//! What a plan comes to is then what it would have come to before the news: a failure takes something from a backend's state, and
//! nothing that the plan has yet to write gives it back ([`Marks`]). What else follows from the news is the next plan's.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, Wake, Waker},
    thread::{self, Thread},
    time::{Duration, SystemTime},
};

use tokio::{sync::mpsc, task::unconstrained, time::Instant};

use super::Core;
use crate::{
    dataplane::{Dataplane, DataplaneError, Operation},
    health::{Event, Target},
    model::ServiceId,
    plan::{self, Inputs, Layout, Placed, Plan, PlanError},
};

/// How often what packets show is looked at, of services that want it. It is memory that the program writes to: a look
/// costs no call of the kernel, and no packet has to wake anybody.
const WATCH: Duration = Duration::from_millis(10);
/// A look is followed by a pause that makes it this part of the time at most, however many backends there are.
const WATCH_PART: u32 = 10;
/// How many of many are seen to before news is taken in again.
pub(super) const AT_A_TIME: usize = 128;

/// Where news of checks comes in.
#[derive(Debug)]
pub(super) struct Inbox {
    news: mpsc::Receiver<Event>,
    /// Tells the time of it.
    clock: fn() -> SystemTime,
}

/// What backends have lost while a plan is under way: what of its state each keeps, by its pool and address.
#[derive(Debug, Default)]
pub(super) struct Marks {
    new: BTreeMap<ServiceId, BTreeMap<SocketAddr, u8>>,
    /// Those that the plan has been told of, by the entry that it gives the backend.
    told: BTreeMap<u32, u8>,
    /// Entries that the plan has yet to write.
    unwritten: BTreeSet<u32>,
}

/// News that has come while the agent was about something else.
#[derive(Debug, Default)]
pub(super) struct Heard {
    /// The rings must follow.
    pub(super) turned: bool,
    /// Whose news has not been observed yet.
    pub(super) unobserved: BTreeSet<Target>,
    /// When agents were asked who say that their backend has no flow left, of those who said so last.
    none_left: BTreeMap<Target, Instant>,
    /// All of it since a change began, which may be refused and undone.
    since: Option<Vec<Event>>,
}

/// Work on another thread, and who waits for it.
#[derive(Debug)]
struct Work {
    is_done: AtomicBool,
    waiter: Thread,
}

impl Work {
    fn begin() -> Self {
        Self {
            is_done: AtomicBool::new(false),
            waiter: thread::current(),
        }
    }

    fn end(&self) {
        self.is_done.store(true, Ordering::Release);
        self.waiter.unpark();
    }

    fn is_done(&self) -> bool {
        self.is_done.load(Ordering::Acquire)
    }
}

/// Ends a piece of work however it ends.
struct Ends<'a>(&'a Work);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.0.end();
    }
}

/// Wakes a thread that waits for news.
struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

/// What a wait has come to.
#[derive(Debug)]
enum Woken {
    News(Event),
    /// What packets show is to be looked at.
    Look,
    Done,
}

impl Inbox {
    /// Waits until there is a piece of news, the work is done, or it is `look`.
    fn wait(&mut self, work: &Work, look: Option<Instant>) -> Woken {
        let waker = Waker::from(Arc::new(Unpark(thread::current())));
        let mut context = Context::from_waker(&waker);
        loop {
            // The loop's own task may have used up what it is given at a time, which is no reason not to hear.
            let next = pin!(unconstrained(self.news.recv()));
            if let Poll::Ready(Some(event)) = next.poll(&mut context) {
                return Woken::News(event);
            }
            if work.is_done() {
                return Woken::Done;
            }
            let Some(look) = look else {
                thread::park();
                continue;
            };
            let left = look.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Woken::Look;
            }
            thread::park_timeout(left);
        }
    }
}

impl Marks {
    /// Takes note of what backends of a pool keep.
    pub(super) fn add(&mut self, lead: ServiceId, left: &BTreeMap<SocketAddr, u8>) {
        let pool = self.new.entry(lead).or_default();
        for (&address, left) in left {
            *pool.entry(address).or_insert(u8::MAX) &= left;
        }
    }

    /// A plan of these operations is about to be carried out.
    pub(super) fn expect(&mut self, operations: &[Operation]) {
        self.unwritten = operations.iter().filter_map(written).collect();
    }

    /// What is written instead.
    fn within(&self, mut operation: Operation) -> Operation {
        let left = |entry: &u32| self.told.get(entry).copied().unwrap_or(u8::MAX);
        match &mut operation {
            Operation::State(entry, state) => *state &= left(entry),
            Operation::Backend(entry, backend) => backend.state &= left(entry),
            _ => {}
        }
        operation
    }

    /// Has a plan take note of what is new: the writes that this takes. `before` is what the maps held before it.
    fn tell(&mut self, plan: &mut Layout, before: &Layout) -> Vec<Operation> {
        let mut writes = Vec::new();
        for (lead, mut pool) in std::mem::take(&mut self.new) {
            // The entries that they had before have been marked by whoever took note of the news.
            let had = before.placed(lead).into_iter().flat_map(Placed::members);
            let had = had.filter(|(_, member)| pool.contains_key(&member.address()));
            let had: BTreeSet<u32> = had.map(|(_, member)| member.entry).collect();
            let members = plan.placed_mut(lead).map(|placed| &mut placed.members);
            for member in members.into_iter().flatten().flatten() {
                let Some(left) = pool.remove(&member.address()) else {
                    continue;
                };
                let entry = member.entry;
                member.backend.state &= left;
                *self.told.entry(entry).or_insert(u8::MAX) &= left;
                if !had.contains(&entry) && !self.unwritten.contains(&entry) {
                    writes.push(Operation::State(entry, member.backend.state));
                }
            }
        }
        writes
    }
}

impl<D: Dataplane> Core<D> {
    /// Says where news of checks comes in, and how its time is told: it is taken in also while a plan is under way, and else
    /// by whoever waits for it ([`Core::news`]) and passes it to [`Core::hear`].
    pub fn listen(&mut self, news: mpsc::Receiver<Event>, clock: fn() -> SystemTime) {
        self.inbox = Some(Inbox { news, clock });
    }

    /// The next piece of news; nothing once there is none to come.
    pub async fn news(&mut self) -> Option<Event> {
        self.inbox.as_mut()?.news.recv().await
    }

    /// The next piece of news, where it is there already.
    pub fn news_at_hand(&mut self) -> Option<Event> {
        self.inbox.as_mut()?.news.try_recv().ok()
    }

    /// Takes in a piece of news and all that has come with it, each as [`Core::health_of_all`]; true where the rings must follow by
    /// [`Core::enforce`].
    pub fn hear(&mut self, first: Event) -> bool {
        let others = self.inbox.as_ref().map_or(0, |inbox| inbox.news.len());
        let (mut next, mut batch, mut turned) = (Some(first), Vec::new(), false);
        for left in (0..=others).rev() {
            let Some(event) = next.take() else {
                break;
            };
            // Of one backend it is told what came in between, too.
            if self.heard.unobserved.contains(&event.target)
                && let Some(clock) = self.inbox.as_ref().map(|inbox| inbox.clock)
            {
                turned |= self.health_of_all(std::mem::take(&mut batch));
                self.observe_at_once(clock());
            }
            self.heard.add(&event);
            batch.push(event);
            // What comes meanwhile may be without end.
            if left > 0 {
                next = self.news_at_hand();
            }
        }
        turned | self.health_of_all(batch)
    }

    /// When what packets show is to be looked at next, if anybody wants it.
    pub fn watches_at(&self) -> Option<Instant> {
        self.watches().then_some(self.next_watch)
    }

    /// [`Core::watch`], and when to do that again.
    pub fn watch_now(&mut self) -> bool {
        let begun = Instant::now();
        let turned = self.watch();
        self.next_watch = begun + WATCH.max(begun.elapsed() * WATCH_PART);
        turned
    }

    /// Whether any news may come.
    fn is_told(&self) -> bool {
        let inbox = self.inbox.as_ref();
        inbox.is_some_and(|inbox| !inbox.news.is_closed() || !inbox.news.is_empty())
    }

    /// Takes in what is there, between parts of what takes long: failures take effect, and what else follows from it
    /// has to wait ([`Core::has_heard`]).
    pub(in crate::agent) fn hear_meanwhile(&mut self) {
        if let Some(event) = self.news_at_hand() {
            let turned = self.hear(event);
            self.heard.turned |= turned;
        }
    }

    fn hear_until_done(&mut self, work: &Work) {
        let watches = self.watches();
        while !work.is_done()
            && let Some(inbox) = &mut self.inbox
        {
            let turned = match inbox.wait(work, watches.then_some(self.next_watch)) {
                Woken::News(event) => self.hear(event),
                Woken::Look => self.watch_now(),
                Woken::Done => return,
            };
            self.heard.turned |= turned;
        }
    }

    /// Whether what was heard while plans were under way has the rings follow by [`Core::enforce`].
    pub fn has_heard(&self) -> bool {
        self.heard.turned
    }

    /// Whether anything that was heard while the agent was about something else has yet to be seen to.
    pub fn has_news(&self) -> bool {
        let Heard {
            turned,
            unobserved,
            none_left,
            since: _,
        } = &self.heard;
        *turned || !unobserved.is_empty() || !none_left.is_empty()
    }

    /// The backends whose agents say that they have no flow left, and when those were asked; for [`Core::says_drained`].
    pub fn none_left(&mut self) -> BTreeMap<Target, Instant> {
        std::mem::take(&mut self.heard.none_left)
    }

    /// A change begins, or has come to its end.
    pub(super) fn keep_heard(&mut self, keep: bool) {
        self.heard.since = keep.then(Vec::new);
    }

    /// A change was refused, and what is known put back to what it was before: what was heard meanwhile is heard again.
    pub(super) fn hear_again(&mut self) {
        let events = self.heard.since.take().unwrap_or_default();
        for event in events {
            let turned = self.health(event);
            self.heard.turned |= turned;
        }
    }

    /// Makes a plan, to which what comes from now on is news.
    pub(super) fn make(&mut self, layout: &Layout, inputs: &Inputs<'_>) -> Result<Plan, PlanError> {
        self.hear_meanwhile();
        self.beside("plan", || plan::plan(layout, inputs))
    }

    /// Runs `work` on a thread beside this one, which takes in news meanwhile; where none comes in, or there is no further thread,
    /// on this one.
    pub(in crate::agent) fn beside<T: Send>(
        &mut self,
        name: &str,
        work: impl Fn() -> T + Sync,
    ) -> T {
        if !self.is_told() {
            return work();
        }
        let waits = Work::begin();
        let done = thread::scope(|scope| {
            let run = || {
                let _ends = Ends(&waits);
                work()
            };
            let thread = thread::Builder::new().name(name.to_owned());
            let running = thread.spawn_scoped(scope, run).ok()?;
            self.hear_until_done(&waits);
            Some(running.join())
        });
        match done {
            Some(Ok(done)) => done,
            Some(Err(panic)) => std::panic::resume_unwind(panic),
            None => work(),
        }
    }

    /// Carries out a part of a plan.
    pub(super) fn execute_of(
        &mut self,
        operations: Vec<Operation>,
        plan: &mut Layout,
    ) -> Result<(), DataplaneError> {
        if !self.is_told() {
            return self.dataplane.execute(&operations);
        }
        for operation in operations {
            // What a switch depends on is looked at right before it.
            if !matches!(operation, Operation::Switch(_) | Operation::Overflows(..)) {
                self.hear_meanwhile();
                self.keep_marks(plan)?;
            }
            if operation == Operation::Grace {
                let grace = self.dataplane.grace();
                self.beside("grace", grace)?;
                self.keep_marks(plan)?;
                continue;
            }
            let written = written(&operation);
            self.dataplane.execute(&[self.marks.within(operation)])?;
            if let Some(entry) = written {
                self.marks.unwritten.remove(&entry);
            }
        }
        Ok(())
    }

    /// Has the plan that is under way keep to what was heard since it was made.
    pub(super) fn keep_marks(&mut self, plan: &mut Layout) -> Result<(), DataplaneError> {
        let writes = self.marks.tell(plan, &self.layout);
        match writes.is_empty() {
            true => Ok(()),
            false => self.dataplane.execute(&writes),
        }
    }
}

impl Heard {
    fn add(&mut self, event: &Event) {
        self.unobserved.insert(event.target);
        match event.none_left {
            Some(asked) => drop(self.none_left.insert(event.target, asked)),
            None => drop(self.none_left.remove(&event.target)),
        }
        if let Some(since) = &mut self.since {
            since.push(event.clone());
        }
    }
}

/// The entry that an operation gives a backend.
fn written(operation: &Operation) -> Option<u32> {
    match operation {
        Operation::Backend(entry, _) => Some(*entry),
        _ => None,
    }
}
