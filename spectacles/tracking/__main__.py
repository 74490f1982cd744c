from spectacles.tracking.tracking import main

if __name__ == "__main__":
    main()
