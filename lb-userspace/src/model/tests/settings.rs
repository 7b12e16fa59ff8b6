//! What spreads and keeps flows: what goes together, and what a change of it changes.

use super::*;

/// Every flow is recorded for one reason or another.
const RECORDS: &[Spoil] = &[
    (|s| s.scheduler = Scheduler::RoundRobin, "moving_time"),
    (
        |s| s.scheduler = Scheduler::WeightedRoundRobin,
        "moving_time",
    ),
    (|s| s.scheduler = Scheduler::LeastConnections, "moving_time"),
    (
        |s| s.scheduler = Scheduler::WeightedLeastConnections,
        "moving_time",
    ),
    (
        |s| s.scheduler = Scheduler::PowerOfTwoChoices,
        "moving_time",
    ),
    (|s| s.flow_state = FlowState::Always, "moving_time"),
    (|s| s.persistence = MILLISECOND, "moving_time"),
    (
        |s| s.backends[0].max_connections = Some(1),
        "max_connections",
    ),
];

#[test]
fn what_records_flows_is_refused_without_a_moving_time_and_told_the_remedy() {
    for (index, (record, expected)) in RECORDS.iter().enumerate() {
        let mut service = service("10.0.0.1:80/tcp", Mode::Nat, &["10.1.0.2:80"]);
        record(&mut service);
        for moving_time in [None, Some(MILLISECOND)] {
            service.moving_time = moving_time;
            assert!(State::new([service.clone()]).is_ok(), "{index}");
        }
        service.moving_time = Some(Duration::ZERO);
        match State::new([service]) {
            Err(ModelError::Invalid { field, problem, .. }) => {
                assert_eq!(field, *expected, "{index}");
                assert!(problem.contains("record"), "{index}: {problem}");
                assert!(problem.contains("set "), "{index}: {problem}");
            }
            other => panic!("{index}: {other:?}"),
        }
    }
}

#[test]
fn schedulers_that_hash_need_no_moving_time() {
    for scheduler in [
        Scheduler::Maglev,
        Scheduler::SourceHash,
        Scheduler::ThreeTupleHash,
    ] {
        let mut service = service("10.0.0.1:80/tcp", Mode::Nat, &["10.1.0.2:80"]);
        (service.scheduler, service.moving_time) = (scheduler, Some(Duration::ZERO));
        assert!(State::new([service]).is_ok(), "{scheduler:?}");
    }
}

#[test]
fn a_setting_is_written_alike_everywhere() {
    fn check<T: ValueEnum + Serialize>() {
        for value in T::value_variants() {
            let json = serde_json::to_value(value).unwrap();
            assert_eq!(json, name_of(value.clone()));
        }
    }
    check::<Mode>();
    check::<Scheduler>();
    check::<FlowState>();
    check::<OnDown>();
    check::<Unserved>();
    check::<Admin>();
}

#[test]
fn what_is_not_set_goes_by_the_protocol() {
    let of = |id| {
        let service = service(id, Mode::Nat, &[]);
        (service.on_down(), service.moving_time())
    };
    assert_eq!(
        of("10.0.0.1:80/tcp"),
        (OnDown::Keep, Duration::from_secs(900))
    );
    assert_eq!(
        of("10.0.0.1:80/udp"),
        (OnDown::Resteer, Duration::from_secs(30))
    );
}

#[test]
fn each_setting_is_changed_alone_and_the_rest_stays() {
    let id = id("10.0.0.1:80/tcp");
    type Step = (fn(&mut Settings), fn(&mut Service));
    let steps: &[Step] = &[
        (|s| s.ring_size = Some(251), |s| s.ring_size = Some(251)),
        (
            |s| s.scheduler = Some(Scheduler::SourceHash),
            |s| s.scheduler = Scheduler::SourceHash,
        ),
        (
            |s| s.flow_state = Some(FlowState::Always),
            |s| s.flow_state = FlowState::Always,
        ),
        (
            |s| s.on_down = Some(OnDown::Resteer),
            |s| s.on_down = Some(OnDown::Resteer),
        ),
        (
            |s| s.moving_time = Some(WEEK),
            |s| s.moving_time = Some(WEEK),
        ),
        (
            |s| s.dead_after = Some(MILLISECOND),
            |s| s.dead_after = MILLISECOND,
        ),
        (
            |s| s.no_backend = Some(Unserved::Pass),
            |s| s.no_backend = Unserved::Pass,
        ),
        (|s| s.announce = Some(true), |s| s.announce = true),
        (
            |s| s.mss_clamp = Some(MssClamp::Auto),
            |s| s.mss_clamp = MssClamp::Auto,
        ),
        (
            |s| s.persistence = Some(MILLISECOND),
            |s| s.persistence = MILLISECOND,
        ),
        (
            |s| s.persistence_prefix = Some(24),
            |s| s.persistence_prefix = Some(24),
        ),
        (
            |s| s.persistence = Some(Duration::ZERO),
            |s| s.persistence = Duration::ZERO,
        ),
        (
            |s| s.group = Some(Some("web".to_owned())),
            |s| s.group = Some("web".to_owned()),
        ),
        (|s| s.group = Some(None), |s| s.group = None),
    ];
    let mut state = web();
    let mut expected = state.service(id).unwrap().clone();
    for (set, changed) in steps {
        let mut settings = Settings::default();
        set(&mut settings);
        changed(&mut expected);
        state = state.apply(Change::EditService(id, settings)).unwrap();
        assert_eq!(state.service(id), Some(&expected));
    }
}

#[test]
fn an_mss_is_not_lowered_where_there_is_none() {
    let clamp = |text, group: Option<&str>| Service {
        mss_clamp: MssClamp::Auto,
        group: group.map(str::to_owned),
        ..service(text, Mode::Ipip, &["10.1.0.2:80"])
    };
    let refused = State::new([clamp("10.0.0.1:80/udp", None)]).unwrap_err();
    let text = refused.to_string();
    assert!(text.contains("mss_clamp: is about TCP"), "{text}");
    // One beside it may have some.
    let both = [
        clamp("10.0.0.1:80/tcp", Some("web")),
        clamp("10.0.0.1:80/udp", Some("web")),
    ];
    assert!(
        State::new(both.map(|service| Service {
            on_down: Some(OnDown::Keep),
            moving_time: Some(WEEK),
            ..service
        }))
        .is_ok()
    );
}

#[test]
fn a_second_hop_is_refused_where_the_ring_does_not_say_who_may_have_a_flow_or_there_is_no_room_to_tell()
 {
    let hop = |text, backends: &[&str]| Service {
        second_hop: true,
        ..service(text, Mode::Gue, backends)
    };
    let pool = ["10.1.0.2:80", "10.1.0.3:80"];
    let web = || hop("10.0.0.1:80/tcp", &pool);
    assert!(State::new([web()]).is_ok());
    // One beside it may have connections.
    let shared = |text| Service {
        group: Some("web".to_owned()),
        on_down: Some(OnDown::Keep),
        moving_time: Some(WEEK),
        ..hop(text, &pool)
    };
    assert!(State::new([shared("10.0.0.1:80/tcp"), shared("10.0.0.1:80/udp")]).is_ok());
    let with = |spoil: fn(&mut Service)| {
        let mut service = web();
        spoil(&mut service);
        service
    };
    for (service, says) in [
        (with(|s| s.mode = Mode::Ipip), "use mode \"gue\""),
        (with(|s| s.mode = Mode::Nat), "use mode \"gue\""),
        (with(|s| s.scheduler = Scheduler::RoundRobin), "use maglev"),
        (with(|s| s.persistence = WEEK), "leave out one of the two"),
        (hop("10.0.0.1:80/udp", &pool), "is about connections of TCP"),
        (
            hop("10.0.0.1:80/sctp", &pool),
            "is about connections of TCP",
        ),
        (
            hop("10.0.0.1:80/tcp", &["10.1.0.2:80", "[fd00:1::2]:80"]),
            "[fd00:1::2]:80 is of another than 10.1.0.2:80",
        ),
    ] {
        let refused = State::new([service]).unwrap_err().to_string();
        assert!(refused.contains("second_hop: "), "{refused}");
        assert!(refused.contains(says), "{refused}");
    }
}

#[test]
fn settings_that_do_not_fit_what_is_there_are_refused() {
    let id = id("10.0.0.1:80/tcp");
    let set = |state: &State, settings| state.apply(Change::EditService(id, settings));
    let stateless = Settings {
        moving_time: Some(Duration::ZERO),
        ..Settings::default()
    };
    let by_turns = Settings {
        scheduler: Some(Scheduler::RoundRobin),
        ..Settings::default()
    };
    let one_first = set(&web(), stateless.clone()).unwrap();
    assert!(set(&one_first, by_turns.clone()).is_err());
    let other_first = set(&web(), by_turns).unwrap();
    assert!(set(&other_first, stateless).is_err());
    let both_put_right = Settings {
        moving_time: Some(WEEK),
        scheduler: Some(Scheduler::RoundRobin),
        ..Settings::default()
    };
    assert!(set(&one_first, both_put_right).is_ok());
}
