"""The engine process: schedules steps, drives the ranks, answers the front end."""
