"""`meshlib demo` whose scenarios have the time of a busy machine: what they count stays as it is."""

from meshlib.cli import demo_driver, demo_scenarios, main

if __name__ == "__main__":
    demo_driver.PUSH_LIMIT = 20.0
    demo_scenarios.PAGE_LIMIT = 3.0
    demo_scenarios.REJOIN_LIMIT = demo_driver.LOOKING_LIMIT = 60.0
    main()
