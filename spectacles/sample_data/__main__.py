from spectacles.sample_data.generate import main

if __name__ == "__main__":
    main()
